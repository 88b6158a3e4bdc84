"""Answers of a model server that can't be right, and the reasons that are given."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

Reply = dict[str, Any]


def meta(**fields: Any) -> Callable[[Reply], None]:
    return lambda reply: reply["meta_info"].update(fields)


def token(place: int, value: Any) -> Callable[[Reply], None]:
    """The first token's log-prob (0), id (1) or text (2)."""
    return lambda reply: reply["meta_info"]["output_token_logprobs"][0].__setitem__(place, value)


def candidate(value: Any, place: int | None = None) -> Callable[[Reply], None]:
    """The first candidate of the first token, or its log-prob (0) or id (1)."""

    def change(reply: Reply) -> None:
        top = reply["meta_info"]["output_top_logprobs"][0]
        if place is None:
            top[0] = value
        else:
            top[0][place] = value

    return change


def text(value: Any) -> Callable[[Reply], None]:
    return lambda reply: reply.update(text=value)


def longer(reply: Reply) -> None:
    """More tokens than were asked for."""
    found = reply["meta_info"]
    found["finish_reason"] = {"type": "length"}
    found["output_token_logprobs"] = found["output_token_logprobs"][:1] * 99
    found["output_top_logprobs"] = found["output_top_logprobs"][:1] * 99
    reply["text"] = found["output_token_logprobs"][0][2] * 99


NAN, INFINITY = float("nan"), float("inf")

ODD: dict[str, tuple[Callable[[Reply], Any], str]] = {
    "reason is text": (meta(finish_reason="stop"), "finish_reason is a str"),
    "reason is a list": (meta(finish_reason=["stop"]), "finish_reason is a list"),
    "reason is null": (meta(finish_reason=None), "finish_reason is None"),
    "reason is a number": (meta(finish_reason=7), "finish_reason is 7"),
    "unknown reason": (meta(finish_reason={"type": "weary"}), "ended the branch: weary"),
    "reason without a type": (meta(finish_reason={}), "ended the branch: None"),
    "aborted": (
        meta(finish_reason={"type": "abort", "message": "out of\nmemory"}),
        r"abort: out of\nmemory",
    ),
    "another stop": (meta(finish_reason={"type": "stop", "matched": "NaN happened"}), "not asked"),
    "odd stop": (meta(finish_reason={"type": "stop", "matched": {}}), "stopped at a dict"),
    "count is text": (meta(prompt_tokens="7"), "prompt_tokens is a str"),
    "count is huge": (meta(prompt_tokens=10**30), "prompt_tokens is a huge number"),
    "count is negative": (meta(cached_tokens=-1), "cached_tokens is -1"),
    "count is NaN": (meta(prompt_tokens=NAN), "prompt_tokens is nan"),
    "count is a truth": (meta(prompt_tokens=True), "prompt_tokens is True"),
    "more cached": (meta(prompt_tokens=1, cached_tokens=2), "2 cached tokens of 1"),
    "another count": (meta(completion_tokens=3_000), "completion_tokens is 3000"),
    "latency is infinite": (meta(e2e_latency=INFINITY), "e2e_latency is inf"),
    "latency is NaN": (meta(e2e_latency=NAN), "e2e_latency is nan"),
    "latency is negative": (meta(e2e_latency=-1), "e2e_latency is -1"),
    "latency is text": (meta(e2e_latency="1 s"), "e2e_latency is a str"),
    "id is negative": (token(1, -1), "-1 is not a token id"),
    "id is too large": (token(1, 2**31), "2147483648 is not a token id"),
    "id is a fraction": (token(1, 1.5), "1.5 is not a token id"),
    "id is null": (token(1, None), "None is not a token id"),
    "id is a truth": (token(1, True), "True is not a token id"),
    "log-prob above 0": (token(0, 50), "50 is not a log-probability"),
    "log-prob is infinite": (token(0, INFINITY), "inf is not a log-probability"),
    "log-prob is huge": (token(0, 10**400), "a huge number is not a log-probability"),
    "log-prob is text": (token(0, "-1"), "a str is not a log-probability"),
    "piece is missing": (token(2, None), "without the tokens' text"),
    "piece of another text": (token(2, "something else"), "does not make up"),
    "candidate is an object": (candidate({}), "without the tokens' id"),
    "candidate is short": (candidate([-1]), "without the tokens' id"),
    "candidate is null": (candidate(None), "without the tokens' id"),
    "candidate's id": (candidate(2**40, 1), "is not a token id"),
    "candidate's log-prob": (candidate(NAN, 0), "nan is not a log-probability"),
    "candidates are missing": (meta(output_top_logprobs=[]), "0 lists of candidates"),
    "candidates are null": (meta(output_top_logprobs=None), "no log-probabilities"),
    "no tokens": (meta(output_token_logprobs=[], output_top_logprobs=[]), "sent no tokens"),
    "more tokens": (longer, "99 tokens came, at most 60"),
    "text is null": (text(None), "not a completion"),
    "text is a list": (text(["4"]), "not a completion"),
    "text of others": (text("quite another text"), "does not make up"),
    "meta is a list": (lambda reply: reply.update(meta_info=[]), "not a completion"),
    "an error inside": (meta(error="boom\x1b[31m", error_type="PromptTooLong"), "failed: boom\\u"),
    "an error of a kind": (meta(error_type="PromptTooLong"), "gives no reason"),
}

HARMLESS: dict[str, Callable[[Reply], Any]] = {
    "null counts": meta(prompt_tokens=None, cached_tokens=None, completion_tokens=None),
    "null latency": meta(e2e_latency=None),
    "unknown fields": meta(weight_version=["x"], spec_verify_ct=NAN),
    "half a surrogate pair": candidate("\ud800", 2),
    "minus infinity": candidate(-INFINITY, 0),
    "stop without a match": meta(finish_reason={"type": "stop", "matched": None}),
    "length with the stop text inside": meta(finish_reason={"type": "length"}),
}

NOT_JSON = {
    "names twice": b'{"text": "4", "text": "5", "meta_info": {}}',
    "deeply nested": b'{"text": ' + b"[" * 150_000 + b"]" * 150_000 + b"}",
    "a list": b'[{"text": "4"}]',
    "not UTF-8": b'{"text": "\xff"}',
    "5,000 digits": b'{"text": ' + b"9" * 5_000 + b"}",
}


def sent(reply: Reply) -> Reply:
    """The reply as it comes out of the wire."""
    found: Reply = json.loads(json.dumps(reply))
    return found
