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
| `output_token_logprobs` | | not [[logprob, id, piece], ...]; none for a text; too many |
| `output_top_logprobs` | | not [[[logprob, id, piece] x 5], ...] |

Where the text has a stop text, it ends there, whatever the finish reason says: tokens after it
are left out. Log-probabilities are read in columns: each check is over a whole column at once,
which takes a third of the time of checking token by token.

A piece is the text of one token decoded alone. The pieces joined differ from the text of all
where a token holds a part of a character (its piece has U+FFFD), where the tokenizer drops a
space at the edge of a token that stands alone, and at special tokens, which have a name and no
text. `token_texts` gives each token its part of the text.
"""

from __future__ import annotations

import math
import re
from array import array
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import itemgetter
from typing import Any

from marco_search.errors import BranchFailed
from marco_search.jobs import validation
from marco_search.search.branches import MARCO_O1, TOP_K, Token

BROKEN = "\ufffd"
LARGEST_ID = 2**31 - 1
LOWEST = -3.4e38  # a float32 that is finite, for a log-prob of minus infinity
_ROUNDING = 1e-3  # how far above 0 a log-prob may be
_SEQUENCES = {list, tuple}
_LOOK_AHEAD = 16  # tokens without a text that may stand between two with one
# <|im_end|>, </s>, [PAD]: skipped in a text unless the text has it.
_SPECIAL = re.compile(r"<[^<>\s]+>|\[[A-Z_]+\]")
_LARGEST_COUNT = 2**30  # two of them fit into what the trail stores
_LONGEST_S = 1e9

Candidates = tuple[tuple[int, float], ...]
"""The candidates of a position, (id, log-prob), best first."""


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
    stops: Sequence[str] = MARCO_O1.stops,
    most: int = _LARGEST_COUNT,
) -> Completion:
    """The completion in (text, SGLang's `meta_info`).

    `stops` and `most` are the stop texts and the number of tokens that were asked for.
    Raises BranchFailed for what can't be right.
    """
    if not isinstance(text, str):
        raise BranchFailed("the runtime's answer has no text")
    stopped, matched = _finish(meta, stops)
    used = usage(meta, "e2e_latency")
    if stopped and not text and not isinstance(matched, str) and _has_no_tokens(meta):
        return Completion(text="", tokens=(), texts={}, stopped=True, stop=None, **used)
    chosen, candidates = entries(meta)
    numbers, values = ids(chosen), logprobs(chosen)
    others = ids(candidates)
    tops = best(others, logprobs(candidates))
    texts = _texts(text, pieces(chosen), matched, stops)
    joined = "".join(texts)
    stop, at = first_of(joined, stops)
    kept = len(texts)
    if stop is not None:
        kept = bisect_left(list(accumulate(map(len, texts))), at + len(stop)) + 1
    if kept > most:
        raise BranchFailed(f"{kept} tokens came, at most {most} were asked for")
    counted = _count(meta, "completion_tokens")
    if counted not in (kept, len(chosen)) and meta.get("completion_tokens") is not None:
        raise BranchFailed(f"completion_tokens is {counted}, there are {len(chosen)} tokens")
    return Completion(
        text=storable([joined[:at]])[0],
        tokens=tuple(map(Token, numbers, storable(texts)[:kept], values, tops)),
        texts=candidate_texts(candidates, others),
        stopped=stopped or stop is not None,
        stop=stop,
        **used,
    )


def _has_no_tokens(meta: Mapping[str, Any]) -> bool:
    """Whether the turn ended at once, and the server leaves out the token that ends it."""
    return meta.get("output_token_logprobs") == [] == meta.get("output_top_logprobs")


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


def usage(meta: Mapping[str, Any], latency: str) -> dict[str, Any]:
    """prompt_tokens, cached_tokens and seconds, which stand in `meta` under the name `latency`.

    Raises BranchFailed.
    """
    prompt, cached = _count(meta, "prompt_tokens"), _count(meta, "cached_tokens")
    if cached > prompt:
        raise BranchFailed(
            f"{cached} cached tokens of {prompt} prompt tokens: more cached than all"
        )
    return {
        "prompt_tokens": prompt,
        "cached_tokens": cached,
        "seconds": _seconds(meta, latency),
    }


def _count(meta: Mapping[str, Any], name: str) -> int:
    """The number of tokens under this name; 0: there is none."""
    value: Any = meta.get(name)
    if value is None:
        return 0
    if type(value) is not int or not 0 <= value <= _LARGEST_COUNT:
        raise BranchFailed(f"{name} is {shown(value)}, not a count")
    return value


def _seconds(meta: Mapping[str, Any], name: str) -> float:
    """The seconds under this name; 0.0: there are none."""
    value: Any = meta.get(name)
    if value is None:
        return 0.0
    if type(value) not in (int, float) or not 0 <= value <= _LONGEST_S:
        raise BranchFailed(f"{name} is {shown(value)}, not seconds")
    return float(value)


def _texts(
    text: str, pieces: list[str], matched: str | int | None, stops: Sequence[str]
) -> list[str]:
    """One text per token; joined they are the completion, with the stop text it ended at."""
    if isinstance(matched, int):
        pieces = [*pieces[:-1], ""]  # the end of the sequence has no text
    elif matched is None:
        # A server that does not say so may have stopped there, and cut it off.
        matched = first_of("".join(pieces), stops)[0]
    stop = matched if isinstance(matched, str) else ""
    trimmed = stop and stop not in text
    return token_texts(pieces, text + stop if trimmed else text, more=bool(trimmed))


def first_of(text: str, stops: Sequence[str]) -> tuple[str | None, int]:
    """The stop text that comes first and where it begins; (None, length of the text)."""
    found = [(at, stop) for stop in stops if (at := text.find(stop)) >= 0]
    at, stop = min(found, default=(len(text), None))
    return stop, at


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
        missing = "log-probabilities without the tokens' id or text"
        raise BranchFailed(f"the runtime sent {missing}") from None


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
        if math.isfinite(sum(found)) and min(found) > LOWEST and max(found) <= _ROUNDING:
            return found
    for value in values:
        if type(value) not in (float, int) or not value <= _ROUNDING:  # NaN is not
            raise BranchFailed(f"{shown(value)} is not a log-probability")
    return array("f", [max(value, LOWEST) for value in values]).tolist()


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
    return list(map(validation.storable, texts)) if odd else texts


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
            ends = (j for j in range(i, len(pieces)) if BROKEN not in pieces[j])
            after = next(ends, len(pieces))
            found = _broken(whole, at, pieces[i:after], pieces[after : after + _LOOK_AHEAD])
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
    seen = (p for p in following if not _SPECIAL.fullmatch(p) or whole.find(p, at) >= 0)
    neighbour = next(filter(None, seen), "")
    ways = {neighbour, neighbour.strip(" ") or neighbour}  # its space may have been dropped
    found = [end for end in (whole.find(way, at + 1) for way in ways) if end >= 0]
    if neighbour and not found:
        raise _other_text()
    end = min(found) if neighbour else len(whole)
    return [""] * (len(run) - 1) + [whole[at:end]]


def _other_text() -> BranchFailed:
    return BranchFailed("the tokens' text does not make up the completion's text")
