"""Reads the lists of log-probabilities in a reply into columns: ids, log-probs, texts.

SGLang's `output_token_logprobs` is [[logprob, id, piece], ...] and `output_top_logprobs` is
[[[logprob, id, piece] x 5], ...]. Each check is over a whole column at once: a token at a time
this took three times as long, a third of a worker's work.

A piece is the text of one token decoded alone. The pieces joined differ from the text of all
where a token holds a part of a character (its piece has U+FFFD), where the tokenizer drops a
space at the edge of a token that stands alone, and at special tokens, which have a name and no
text. `token_texts` gives each token its part of the text.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Mapping, Sequence
from itertools import islice, takewhile
from operator import itemgetter
from typing import Any

from marco_search.errors import BranchFailed
from marco_search.search.branches import TOP_K

BROKEN = "\ufffd"
LARGEST_ID = 2**31 - 1
_LOWEST = -3.4e38  # a float32 that is finite, for a log-prob of minus infinity
_ROUNDING = 1e-3  # how far above 0 a log-prob may be
_SEQUENCES = {list, tuple}
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_LOOK_AHEAD = 16  # tokens without a text that may stand between two with one
# <|im_end|>, </s>, [PAD]: skipped in a text unless the text has it.
_SPECIAL = re.compile(r"<[^<>\s]+>|\[[A-Z_]+\]")

Candidates = tuple[tuple[int, float], ...]
"""The candidates of a position, (id, log-prob), best first."""


def entries(meta: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    """(one entry a token, TOP_K candidates a token in one list), or BranchFailed."""
    chosen = meta.get("output_token_logprobs")
    tops = meta.get("output_top_logprobs")
    if not isinstance(chosen, list) or not isinstance(tops, list):
        raise BranchFailed("the runtime sent no log-probabilities")
    if not chosen:
        raise BranchFailed("the runtime sent no tokens")
    if len(chosen) != len(tops):
        raise BranchFailed(f"{len(chosen)} tokens came with {len(tops)} lists of candidates")
    for top in tops:
        if type(top) not in _SEQUENCES or len(top) != TOP_K:
            count = len(top) if type(top) in _SEQUENCES else "no"
            raise BranchFailed(f"{count} candidates at a position, {TOP_K} were asked for")
    return chosen, [candidate for top in tops for candidate in top]


def _column(rows: Sequence[Any], place: int) -> list[Any]:
    try:
        return list(map(itemgetter(place), rows))
    except (TypeError, LookupError):
        raise BranchFailed(
            "the runtime sent log-probabilities without the tokens' id or text"
        ) from None


def pieces(chosen: Sequence[Any]) -> list[str]:
    """The tokens' own texts."""
    found = _column(chosen, 2)
    if set(map(type, found)) != {str}:
        raise BranchFailed("the runtime sent log-probabilities without the tokens' text")
    return found


def ids(column: Sequence[Any]) -> list[int]:
    """The entries' token ids, 0 to LARGEST_ID."""
    found = _column(column, 1)
    if set(map(type, found)) != {int} or min(found) < 0 or max(found) > LARGEST_ID:
        odd = next(i for i in found if type(i) is not int or not 0 <= i <= LARGEST_ID)
        raise BranchFailed(f"{shown(odd)} is not a token id")
    return found


def logprobs(column: Sequence[Any]) -> list[float]:
    """The entries' log-probs rounded to float32, which is what the trail stores.

    Minus infinity is the lowest finite float32.
    """
    values = _column(column, 0)
    if set(map(type, values)) <= {float, int}:
        try:
            found = array("f", values).tolist()
        except OverflowError:
            found = [-math.inf]
        if math.isfinite(sum(found)) and min(found) > _LOWEST and max(found) <= _ROUNDING:
            return found
    for value in values:
        if type(value) not in (float, int) or not value <= _ROUNDING:  # NaN is not
            raise BranchFailed(f"{shown(value)} is not a log-probability")
    return array("f", [max(value, _LOWEST) for value in values]).tolist()


def best(numbers: Sequence[int], values: Sequence[float]) -> list[Candidates]:
    """The candidates of each position, best first, from the ids and log-probs of all."""
    known = list(zip(numbers, values, strict=True))
    return [
        tuple(sorted(known[i : i + TOP_K], key=itemgetter(1), reverse=True))
        for i in range(0, len(known), TOP_K)
    ]


def candidate_texts(candidates: Sequence[Any], numbers: Sequence[int]) -> dict[int, str]:
    """What each candidate reads by itself, by token id, as the runtime shows it.

    A token that holds a part of a character has U+FFFD for it, one that has no text (the end of
    the sequence) its name. Candidates whose text was not sent are left out.
    """
    texts: list[Any] = [candidate[2] if len(candidate) > 2 else None for candidate in candidates]
    pairs = zip(numbers, texts, strict=True)
    if set(map(type, texts)) == {str}:
        found = dict(pairs)
    else:
        found = {token: text for token, text in pairs if type(text) is str}
    return dict(zip(found, storable(list(found.values())), strict=True))


def storable(texts: list[str]) -> list[str]:
    """`texts` with what no database keeps in a text (NUL, half a surrogate pair) as U+FFFD."""
    joined = "".join(texts)
    try:
        joined.encode()  # much faster than to search for what can't be
        odd = "\x00" in joined
    except UnicodeEncodeError:
        odd = True
    return [_UNSTORABLE.sub(BROKEN, text) for text in texts] if odd else texts


def shown(value: object) -> str:
    """An odd value in a message: a number or None as it is, else only what it is."""
    if value is None or isinstance(value, bool | float):
        return repr(value)
    if isinstance(value, int):
        return repr(value) if abs(value) < 10**30 else "a huge number"
    return f"a {type(value).__name__}"


def token_texts(pieces: list[str], whole: str, *, more: bool = False) -> list[str]:
    """One text for each piece; joined they are `whole`.

    With `more` (`whole` ends in a stop text) the pieces may go on after it. A character's text
    stands at the token that completes it. Raises BranchFailed if the pieces are of another text.
    """
    if _makes_up(pieces, whole, more):
        return pieces
    texts = _aligned(pieces, whole, more)
    if _makes_up(texts, whole, more):
        return texts
    raise _other_text()


def _makes_up(texts: list[str], whole: str, more: bool) -> bool:
    joined = "".join(texts)
    return joined == whole or (more and joined.startswith(whole))


def _aligned(pieces: list[str], whole: str, more: bool) -> list[str]:
    texts: list[str] = []
    at = 0
    while len(texts) < len(pieces):
        i = len(texts)
        piece = pieces[i]
        if at == len(whole) and more:
            texts.append(piece)
        elif BROKEN in piece:
            run = list(takewhile(lambda p: BROKEN in p, islice(pieces, i, None)))
            after = i + len(run)
            found = _broken(whole, at, run, pieces[after : after + _LOOK_AHEAD])
            texts += found
            at += sum(map(len, found))
        else:
            texts.append(_one(whole, at, piece, more))
            at += len(texts[-1])
    return texts


def _one(whole: str, at: int, piece: str, more: bool) -> str:
    """The text of a piece without broken characters, which begins at `at`."""
    if whole.startswith(piece, at) or (more and piece.startswith(whole[at:])):
        return piece
    core = piece.strip(" ")
    start = at + whole.startswith(" ", at)
    for begin in (start, at):
        if core and whole.startswith(core, begin):
            return whole[at : begin + len(core)]
    if core and not _SPECIAL.fullmatch(core):
        raise _other_text()
    return ""


def _broken(whole: str, at: int, run: list[str], following: list[str]) -> list[str]:
    """The texts of a run of broken pieces: all of it at the last one, unless they are meant so."""
    if whole.startswith("".join(run), at):
        return run  # a U+FFFD that the model wrote
    if whole.startswith(BROKEN, at):  # characters that were never completed
        end = next(i for i in range(at, len(whole) + 1) if whole[i : i + 1] != BROKEN)
    else:
        known = (p for p in following if p and not _unseen(p, whole, at))
        neighbour = next(known, "")
        end = whole.find(neighbour.strip(" ") or neighbour, at + 1) if neighbour else len(whole)
        if end < 0:
            raise _other_text()
    return [""] * (len(run) - 1) + [whole[at:end]]


def _unseen(piece: str, whole: str, at: int) -> bool:
    return _SPECIAL.fullmatch(piece) is not None and whole.find(piece, at) < 0


def _other_text() -> BranchFailed:
    return BranchFailed("the tokens' text does not make up the completion's text")
