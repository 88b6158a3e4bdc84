"""Reads what any backend answered to a generate call.

Nothing of a reply is used before it went through here. What can't be right is refused with
BranchFailed, so that it costs one branch:

| field | read as absent (0) | refused |
|---|---|---|
| `text` | | not text; not what the tokens make up |
| `finish_reason` | | no object; `type` other than stop and length; `matched` not asked for |
| `prompt_tokens`, `cached_tokens` | missing, null | no whole number from 0 to 2^30; more cached |
| `completion_tokens` | missing, null | another number than there are log-probabilities |
| `e2e_latency` | missing, null | no number from 0 to 10^9 |
| log-probabilities | | see tokens.py; more tokens than were asked for |

Where the text has a stop text, it ends there, whatever the finish reason says: tokens after it
are left out.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from marco_search.errors import BranchFailed
from marco_search.runtime import tokens as columns
from marco_search.runtime.tokens import shown, token_texts
from marco_search.search.branches import END_OF_OUTPUT, Token

_LARGEST_COUNT = 2**30  # two of them fit into what the trail stores
_LONGEST_S = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What one generate call gave."""

    text: str  #: without the stop text
    tokens: tuple[Token, ...]  #: with those of the stop text and the end of the sequence
    texts: Mapping[int, str] = field(repr=False)  #: of the candidates, by token id
    stopped: bool  #: by a stop text or by the end of the sequence; else out of tokens
    stop: str | None  #: the stop text that ended it
    prompt_tokens: int
    cached_tokens: int
    seconds: float


def read_completion(
    text: object,
    meta: Mapping[str, Any],
    *,
    stops: Sequence[str] = (END_OF_OUTPUT,),
    most: int = _LARGEST_COUNT,
) -> Completion:
    """The completion in (text, SGLang's `meta_info`).

    `stops` and `most` are the stop texts and the number of tokens that were asked for.
    Raises BranchFailed for what can't be right.
    """
    if not isinstance(text, str):
        raise BranchFailed("the runtime's answer has no text")
    stopped, matched = _finish(meta, stops)
    prompt_tokens = int(_number(meta, "prompt_tokens"))
    cached_tokens = int(_number(meta, "cached_tokens"))
    if cached_tokens > prompt_tokens:
        raise BranchFailed(f"{cached_tokens} cached tokens of {prompt_tokens} prompt tokens")
    chosen, candidates = columns.entries(meta)
    ids, logprobs = columns.ids(chosen), columns.logprobs(chosen)
    others = columns.ids(candidates)
    best = columns.best(others, columns.logprobs(candidates))
    texts = _texts(text, columns.pieces(chosen), matched, stops)
    joined = "".join(texts)
    stop, at = _first(joined, stops)
    kept = len(texts)
    if stop is not None:
        kept = bisect_left(list(accumulate(map(len, texts))), at + len(stop)) + 1
    if kept > most:
        raise BranchFailed(f"{kept} tokens came, at most {most} were asked for")
    counted = _number(meta, "completion_tokens")
    if counted not in (kept, len(chosen)) and meta.get("completion_tokens") is not None:
        raise BranchFailed(f"completion_tokens is {counted}, there are {len(chosen)} tokens")
    return Completion(
        text=columns.storable([joined[:at]])[0],
        tokens=tuple(map(Token, ids, columns.storable(texts)[:kept], logprobs, best)),
        texts=columns.candidate_texts(candidates, others),
        stopped=stopped or stop is not None,
        stop=stop,
        prompt_tokens=prompt_tokens,
        cached_tokens=cached_tokens,
        seconds=float(_number(meta, "e2e_latency", _LONGEST_S, "seconds", (int, float))),
    )


def _finish(meta: Mapping[str, Any], stops: Sequence[str]) -> tuple[bool, str | int | None]:
    """(whether it stopped by itself, the stop text or the token that it stopped at)."""
    reason = meta.get("finish_reason")
    if not isinstance(reason, Mapping):
        raise BranchFailed(f"the runtime's finish_reason is {shown(reason)}, not an object")
    kind: object = reason.get("type")
    matched: Any = reason.get("matched")
    if kind == "length":
        return False, None
    if kind != "stop":
        texts = [part for part in (kind, reason.get("message")) if isinstance(part, str)]
        raise BranchFailed(f"the runtime ended the branch: {': '.join(texts) or shown(kind)}")
    if isinstance(matched, list) and matched:
        matched = matched[-1]  # a sequence of tokens
    if isinstance(matched, str) and matched not in stops:
        raise BranchFailed(f"the runtime stopped at a text that was not asked for: {matched}")
    if matched is not None and type(matched) not in (str, int):
        raise BranchFailed(f"the runtime stopped at {shown(matched)}, not a text or token")
    return True, matched


def _number(
    meta: Mapping[str, Any],
    name: str,
    largest: float = _LARGEST_COUNT,
    what: str = "a count",
    types: tuple[type, ...] = (int,),
) -> float:
    value: Any = meta.get(name)
    if value is None:
        return 0
    if type(value) not in types or not 0 <= value <= largest:
        raise BranchFailed(f"{name} is {shown(value)}, not {what}")
    number: float = value
    return number


def _texts(
    text: str, pieces: list[str], matched: str | int | None, stops: Sequence[str]
) -> list[str]:
    """One text per token; joined they are the completion, with the stop text it ended at."""
    if isinstance(matched, int):
        pieces = [*pieces[:-1], ""]  # the end of the sequence has no text
    elif matched is None:
        # A server that does not say so may have stopped there, and cut it off.
        matched = _first("".join(pieces), stops)[0]
    stop = matched if isinstance(matched, str) else ""
    trimmed = stop and stop not in text
    return token_texts(pieces, text + stop if trimmed else text, more=bool(trimmed))


def _first(text: str, stops: Sequence[str]) -> tuple[str | None, int]:
    """The stop text that comes first and where it begins; (None, length of the text)."""
    found = [(at, stop) for stop in stops if (at := text.find(stop)) >= 0]
    at, stop = min(found, default=(len(text), None))
    return stop, at
