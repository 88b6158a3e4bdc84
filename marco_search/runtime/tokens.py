"""Reads a backend's (text, meta_info) into tokens, the same way for every backend.

`meta_info` is SGLang's: `output_token_logprobs` is [[logprob, id, piece], ...] and
`output_top_logprobs` is [[[logprob, id, piece] x 5], ...]. A piece is the text of one
token decoded alone: a token that holds a part of a character shows as U+FFFD, and the end of
the sequence may show as its own name. Token texts are made so that, joined, they are what
was generated.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from marco_search.errors import BranchFailed
from marco_search.search.branches import TOP_K, Token

BROKEN = "�"


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
    texts = _texts(text, [_piece(entry) for entry in chosen], meta)
    return tuple(
        # A NUL that a model made up is shown as broken: no database keeps it in a text.
        Token(_id(entry), piece.replace("\x00", BROKEN), _logprob(entry), _candidates(top))
        for entry, piece, top in zip(chosen, texts, tops, strict=True)
    )


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


def _id(entry: Sequence[Any]) -> int:
    if not isinstance(entry[1], int):
        raise BranchFailed(f"{entry[1]!r} is not a token id")
    return entry[1]


def _logprob(entry: Sequence[Any]) -> float:
    """The entry's log-prob rounded to float32, which is what the trail stores."""
    value = entry[0]
    if not isinstance(value, int | float) or math.isnan(value) or value == math.inf:
        raise BranchFailed(f"{value!r} is not a log-probability")
    return float(struct.unpack("f", struct.pack("f", max(value, -3.4e38)))[0])


def _candidates(top: Any) -> tuple[tuple[int, float], ...]:
    if not isinstance(top, list) or len(top) != TOP_K:
        count = len(top) if isinstance(top, list) else "no"
        raise BranchFailed(f"{count} candidates at a position, {TOP_K} were asked for")
    found = [(_id(entry), _logprob(entry)) for entry in top]
    return tuple(sorted(found, key=lambda c: -c[1]))


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
