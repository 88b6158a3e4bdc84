"""Reads the lists of log-probabilities in a reply into columns: ids, log-probs, texts.

SGLang's `output_token_logprobs` is [[logprob, id, piece], ...] and `output_top_logprobs` is
[[[logprob, id, piece] x 5], ...]. Each check is over a whole column at once: a token at a time
this took three times as long, a third of a worker's work.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from marco_search.errors import BranchFailed
from marco_search.runtime.pieces import BROKEN
from marco_search.search.branches import TOP_K

LARGEST_ID = 2**31 - 1
_LOWEST = -3.4e38  # a float32 that is finite, for a log-prob of minus infinity
_ROUNDING = 1e-3  # how far above 0 a log-prob may be
_SEQUENCES = {list, tuple}
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")

Known = tuple[tuple[int, float], ...]
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


def best(numbers: Sequence[int], values: Sequence[float]) -> list[Known]:
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
