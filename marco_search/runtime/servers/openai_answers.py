"""Reads a completion in the shapes that servers answer in, and puts it into SGLang's.

| shape | servers | token ids |
|---|---|---|
| lists in `logprobs` (`tokens`, `top_logprobs`, ...) | vLLM | as texts: "token_id:7" |
| the same | llama-cpp-python and others | none |
| objects in `logprobs.content` | llama.cpp's server | `id` |
| `details` (`tokens`, `top_tokens`) | TGI's own /generate | `id` |

Only the shape is looked at here; what the values may be, `marco_search.runtime.reply` says.
"""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

from marco_search.errors import BranchFailed
from marco_search.runtime.reply import BROKEN, LOWEST, first_of
from marco_search.search.branches import TOP_K

Row = tuple[Any, Any, str]
"""(log-prob, id, text) of a token or candidate, as in SGLang's lists."""

Spell = Callable[[Sequence[int]], list[str]]
"""The texts of tokens, each by itself, from their ids."""

TEXT_IDS = 2**30
"""The first of the ids that are made from texts; a model's own are all smaller."""

_ID = re.compile(r"token_id:(\d{1,10})")
_ENDS = {"stop": "stop", "eos_token": "stop", "stop_sequence": "stop", "length": "length"}


def text_id(text: str) -> int:
    """The id of a token whose server gives only texts: a hash, the same everywhere.

    30 bits: two given texts share an id once in a thousand million pairs.
    """
    digest = blake2b(text.encode(errors="surrogatepass"), digest_size=4).digest()
    return TEXT_IDS + int.from_bytes(digest) % TEXT_IDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One completion. Counts are None where the server does not give them."""

    text: str  #: up to a stop text, with or without that
    finish: object  #: "stop", "length", or what else the server says
    matched: str | int | None  #: the stop text or token that ended it, if the server says which
    tokens: Sequence[Row]
    tops: Sequence[Sequence[Row]]  #: the candidates of each position
    prompt_tokens: object
    completion_tokens: object
    cached_tokens: object
    cut: bool = False  #: whether the tokens of a stop text are left out

    @property
    def has_ids(self) -> bool:
        """Whether the ids are the model's own."""
        return all(type(row[1]) is int and row[1] < TEXT_IDS for row in self.tokens)

    def whole_tokens(self) -> Answer:
        """Only the tokens that lie within the text; a last one without a text does not."""
        count = at = 0
        while count < len(self.tokens) and self.text.startswith(self.tokens[count][2], at):
            at += len(self.tokens[count][2])
            count += 1
        while count and not self.tokens[count - 1][2]:
            count -= 1
        return replace(self, tokens=self.tokens[:count], tops=self.tops[:count])

    def closed(self, last: Answer, stop: str) -> Answer:
        """With the tokens of the stop text, which `last` holds."""
        return replace(
            self,
            matched=stop,
            tokens=[*self.tokens, *last.tokens],
            tops=[*self.tops, *last.tops],
            completion_tokens=None,
        )

    def as_sglang(self, stops: Sequence[str]) -> dict[str, Any]:
        """What SGLang's /generate would have answered."""
        stop, at = first_of(self.text, stops)
        return {
            "text": self.text[:at],
            "meta_info": {
                "finish_reason": {"type": self.finish, "matched": stop or self.matched},
                "prompt_tokens": self.prompt_tokens,
                "cached_tokens": self.cached_tokens,
                "completion_tokens": self.completion_tokens,
                "output_token_logprobs": self.tokens,
                "output_top_logprobs": self.tops,
            },
        }


def read(answer: Mapping[str, Any], spell: Spell, *, trims: bool = False) -> Answer:
    """The completion in a server's answer. Raises BranchFailed for what is none.

    `trims`: the server leaves out tokens, as llama.cpp's does. Those of a stop text, at least as
    many as that has by itself; and those that end within a character, which come as one with the
    token that completes it.
    """
    try:
        if "details" in answer:
            return _read_details(answer)
        (choice,) = answer["choices"]
        logprobs, usage = choice["logprobs"], answer.get("usage") or {}
        if logprobs is None and (trims or choice["text"] == ""):
            logprobs = {"content": []}
        if logprobs is None:
            raise BranchFailed("the server sent no log-probabilities")
        text = _text(choice["text"])
        rows = _from_content if "content" in logprobs else _from_lists
        tokens, tops = rows(logprobs, text, spell)
        reason, count = choice["finish_reason"], usage.get("completion_tokens")
        details = usage.get("prompt_tokens_details") or {}
        return Answer(
            text=_as_tokens_have_it(text, tokens),
            finish=_ENDS.get(reason, reason),
            matched=choice.get("stop_reason"),
            tokens=tokens,
            tops=tops,
            prompt_tokens=usage.get("prompt_tokens"),
            completion_tokens=None if trims else count,
            cached_tokens=details.get("cached_tokens"),
            cut=trims and reason == "stop" and count != len(tokens) and not _ended(tokens, tops),
        )
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
        raise BranchFailed("the server's answer is not a completion with log-probabilities") from (
            None
        )


def _read_details(answer: Mapping[str, Any]) -> Answer:
    details = answer["details"]
    reason = details["finish_reason"]
    tokens = [(t["logprob"], t["id"], _text(t["text"])) for t in details["tokens"]]
    tops = [[(t["logprob"], t["id"], t["text"]) for t in top] for top in details["top_tokens"]]
    return Answer(
        text=_text(answer["generated_text"]),
        finish=_ENDS.get(reason, reason),
        matched=None,
        tokens=tokens,
        tops=list(map(_best, tops)),
        prompt_tokens=None,
        completion_tokens=details["generated_tokens"],
        cached_tokens=None,
    )


def _from_content(
    logprobs: Mapping[str, Any], text: str, spell: Spell
) -> tuple[list[Row], list[list[Row]]]:
    content = logprobs["content"]
    given, tops, own = _decoded(content), [], []
    for entry in content:
        found = [(c["logprob"], c.get("id"), _alone(c)) for c in entry["top_logprobs"]]
        tops.append(_best([(p, _id(i, piece), piece) for p, i, piece in found]))
        own.append(next((piece for _, i, piece in found if i == entry.get("id")), None))
    # What may become a stop text comes with a later token: its candidate tells what it reads.
    pieces = [piece if mine is None else mine for piece, mine in zip(given, own, strict=True)]
    pieces = pieces if "".join(pieces) == "".join(given) else given
    tokens = []
    for entry, piece, mine in zip(content, pieces, own, strict=True):
        # An id that does not spell the piece is only the last of several.
        number = entry.get("id") if piece.isascii() or piece == mine else None
        tokens.append((entry["logprob"], _id(number, piece), piece))
    return tokens, tops


def _from_lists(
    logprobs: Mapping[str, Any], text: str, spell: Spell
) -> tuple[list[Row], list[list[Row]]]:
    texts, tops = list(map(_text, logprobs["tokens"])), logprobs["top_logprobs"]
    names = dict.fromkeys(name for name in (*texts, *(n for top in tops for n in top)))
    matches = {name: _ID.fullmatch(name) for name in names}
    if all(matches.values()):
        ids = {name: int(found[1]) for name, found in matches.items() if found}
        spelt = dict(zip(ids, spell(list(ids.values())), strict=True))
    else:
        ids, spelt = {name: text_id(name) for name in names}, {name: name for name in names}
    pieces = [spelt[name] for name in texts]
    if not "".join(pieces).startswith(text):
        # A part of a character has no text at all with llama-cpp-python.
        pieces = [piece or BROKEN for piece in pieces]
    values = logprobs["token_logprobs"]
    tokens = [
        (value, ids[name], piece) for value, name, piece in zip(values, texts, pieces, strict=True)
    ]
    return tokens, [_best([(p, ids[n], spelt[n]) for n, p in top.items()]) for top in tops]


def _ended(tokens: Sequence[Row], tops: Sequence[Sequence[Row]]) -> bool:
    """Whether the last token is the end of the sequence: without a text, also as a candidate."""
    if not tokens or tokens[-1][2]:
        return False
    return not next((text for _, i, text in tops[-1] if i == tokens[-1][1]), "")


def _best(rows: Sequence[Row]) -> list[Row]:
    """TOP_K candidates: OpenAI's way adds the token itself where it is none of the best.

    Where texts are all that is given, candidates with the same text are one: what is missing is
    filled up with what can't be chosen.
    """
    found = sorted(rows, key=_order, reverse=True)[:TOP_K]
    if not found:
        raise BranchFailed("the server sent a token without candidates")
    missing = (BROKEN * n for n in range(1, TOP_K + 1))
    while len(found) < TOP_K:
        text = next(missing)
        found.append((LOWEST, text_id(text), text))  # adds nothing to a confidence
    return found


def _order(row: Row) -> float:
    value = row[0]
    ok = isinstance(value, int | float) and value == value  # not NaN
    return value if ok else math.inf  # kept, to be refused later


def _decoded(content: Sequence[Mapping[str, Any]]) -> list[str]:
    """The text that each token completes."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    final = [i == len(content) - 1 for i in range(len(content))]
    return [
        _text(entry["token"])
        if entry.get("bytes") is None
        else decoder.decode(_bytes(entry["bytes"]), last)
        for entry, last in zip(content, final, strict=True)
    ]


def _alone(entry: Mapping[str, Any]) -> str:
    given = entry.get("bytes")
    return _text(entry["token"]) if given is None else _bytes(given).decode(errors="replace")


def _id(given: object, text: str) -> object:
    return text_id(text) if given is None else given


def _bytes(value: object) -> bytes:
    if not isinstance(value, list):
        raise TypeError  # of a number Python would make as many bytes
    return bytes(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _as_tokens_have_it(text: str, tokens: Sequence[Row]) -> str:
    """The text; a character that was not completed at its end may be written in other ways."""
    joined = "".join(row[2] for row in tokens)
    return joined if text.rstrip(BROKEN) == joined.rstrip(BROKEN) else text


def grammar(texts: Sequence[str]) -> str:
    """One of `texts`, in llama.cpp's notation."""
    return f"root ::= {' | '.join(map(_quoted, texts))}"


def _quoted(text: str) -> str:
    plain = (c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in text)
    return f'"{"".join(plain)}"'
