"""Reads a backend's (text, meta_info) into tokens, the same way for every backend.

`meta_info` is SGLang's: `output_token_logprobs` is [[logprob, id, piece], ...] and
`output_top_logprobs` is [[[logprob, id, piece] x 5], ...]. A piece is the text of one
token decoded alone: a token that holds a part of a character shows as U+FFFD, and the end of
the sequence may show as its own name. Token texts are made so that, joined, they are what
was generated.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from marco_search.errors import BranchFailed
from marco_search.search.branches import TOP_K, Token

BROKEN = "�"
_LOWEST = -3.4e38  # a float32 that is finite, for a log-prob of minus infinity


def read_tokens(text: str, meta: Mapping[str, Any]) -> tuple[Token, ...]:
    """The generated tokens, those of a stop string or an end of sequence included.

    `text` is the completion as the backend gave it, without the stop string.
    Raises BranchFailed when log-probabilities are missing, not numbers, or do not fit.
    """
    chosen = meta.get("output_token_logprobs")
    tops = meta.get("output_top_logprobs")
    if not isinstance(chosen, list) or not isinstance(tops, list):
        raise BranchFailed("the runtime sent no log-probabilities")
    if len(chosen) != len(tops):
        raise BranchFailed(f"{len(chosen)} tokens came with {len(tops)} lists of candidates")
    pieces = [_piece(entry) for entry in chosen]
    for top in tops:
        if not isinstance(top, list) or len(top) != TOP_K:
            count = len(top) if isinstance(top, list) else "no"
            raise BranchFailed(f"{count} candidates at a position, {TOP_K} were asked for")
    # Columns: a token at a time this took three times as long, a third of a worker's work.
    candidates = [candidate for top in tops for candidate in top]
    known = list(zip(_ids(candidates), _logprobs(candidates), strict=True))
    best = [
        tuple(sorted(known[i : i + TOP_K], key=itemgetter(1), reverse=True))
        for i in range(0, len(known), TOP_K)
    ]
    # A NUL that a model made up is shown as broken: no database keeps it in a text.
    texts = [piece.replace("\x00", BROKEN) for piece in _texts(text, pieces, meta)]
    return tuple(map(Token, _ids(chosen), texts, _logprobs(chosen), best))


def read_texts(meta: Mapping[str, Any]) -> dict[int, str]:
    """What each candidate of the answer reads by itself, by token id.

    As the runtime shows it: a token that holds a part of a character has U+FFFD for it, one
    that has no text (the end of the sequence) its name. To be called after `read_tokens`, which
    refuses an answer that is not whole.
    """
    return {
        entry[1]: entry[2].replace("\x00", BROKEN)
        for top in meta["output_top_logprobs"]
        for entry in top
        if len(entry) > 2 and isinstance(entry[2], str)
    }


def stopped_at(meta: Mapping[str, Any]) -> str | int | None:
    """The stop string or token id that ended the completion; None if something else did."""
    reason = meta.get("finish_reason")
    if isinstance(reason, Mapping) and reason.get("type") == "stop":
        matched = reason.get("matched")
        return matched if isinstance(matched, str | int) else None
    return None


def _piece(entry: Any) -> str:
    if not isinstance(entry, Sequence) or len(entry) < 3 or not isinstance(entry[2], str):
        raise BranchFailed("the runtime sent log-probabilities without the tokens' text")
    return entry[2]


def _ids(entries: Sequence[Any]) -> list[int]:
    ids = [entry[1] for entry in entries]
    for i in ids:
        if type(i) is not int:
            raise BranchFailed(f"{i!r} is not a token id")
    return ids


def _logprobs(entries: Sequence[Any]) -> list[float]:
    """The entries' log-probs rounded to float32, which is what the trail stores."""
    values = [entry[0] for entry in entries]
    try:
        found = array("f", values).tolist()
    except (TypeError, OverflowError):
        found = []
    if len(found) == len(values) and math.isfinite(sum(found)) and min(found, default=0) > _LOWEST:
        return found
    for value in values:
        if not isinstance(value, int | float) or not value <= -_LOWEST:  # NaN is neither
            raise BranchFailed(f"{value!r} is not a log-probability")
    return array("f", [max(value, _LOWEST) for value in values]).tolist()


def _texts(text: str, pieces: list[str], meta: Mapping[str, Any]) -> list[str]:
    """One text per token; joined they are the completion with the stop string it ended at."""
    matched = stopped_at(meta)
    if isinstance(matched, int) and pieces:
        pieces = [*pieces[:-1], ""]  # the end of the sequence has no text
    whole = text + matched if isinstance(matched, str) else text
    if not any(BROKEN in piece for piece in pieces) or "".join(pieces).startswith(whole):
        return pieces  # a U+FFFD that is in the text as well is what the model wrote
    return _align(whole, pieces)


def _align(whole: str, pieces: list[str]) -> list[str]:
    """Give each run of broken pieces the text between its neighbours, at its last token."""
    texts: list[str] = []
    at = 0
    for i, piece in enumerate(pieces):
        if BROKEN not in piece:
            if whole[at : at + len(piece)] != piece and at < len(whole):
                raise BranchFailed("the tokens' text does not make up the completion's text")
            texts.append(piece)
            at += len(piece)
            continue
        following = pieces[i + 1] if i + 1 < len(pieces) else ""
        if BROKEN in following:
            texts.append("")
            continue
        end = whole.find(following, at + 1) if following else len(whole)
        if end < 0:
            raise BranchFailed("the tokens' text does not make up the completion's text")
        texts.append(whole[at:end])
        at = end
    return texts
