"""Writes completions as SGLang does: the text and the `meta_info` beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from marco_search.runtime.embedded.requests import Completion
from marco_search.runtime.embedded.tokenizer import Tokenizer

Meta = dict[str, Any]


def completion_text(tokenizer: Tokenizer, completion: Completion) -> str:
    """The generated text up to the stop string, as SGLang trims it."""
    text = "".join(tokenizer.pieces(completion.tokens))
    if isinstance(completion.matched, str):
        return text.partition(completion.matched)[0]
    return text


def meta_info(
    tokenizer: Tokenizer,
    completion: Completion,
    *,
    rid: str,
    max_new_tokens: int,
    seconds: float,
    logprobs: bool,
    top: int,
    with_text: bool,
    prompt: Sequence[int] = (),
) -> Meta:
    """SGLang's `meta_info` of a completion.

    Log-probs are the model's own, at temperature 1. With text, a chosen token's text is what it
    completes: "" inside a character and for the end of the sequence. `prompt` is the end of
    the prompt that was scored, from the token before the first score on.
    """
    reason: Meta = {"type": "length", "length": max_new_tokens}
    if completion.matched is not None:
        reason = {"type": "stop", "matched": completion.matched}
    meta: Meta = {
        "id": rid,
        "finish_reason": reason,
        "prompt_tokens": completion.prompt_tokens,
        "weight_version": "default",
        "completion_tokens": len(completion.tokens),
        "cached_tokens": completion.cached_tokens,
        "e2e_latency": seconds,
    }
    if logprobs:
        meta["input_token_logprobs"] = [
            [score, token, tokenizer.alone(token) if with_text else None]
            for score, token in zip([None, *completion.scores], prompt, strict=False)
        ]
        texts: list[str | None] = [None] * len(completion.tokens)
        if with_text:
            texts = list(tokenizer.pieces(completion.tokens))
        chosen = zip(completion.logprobs, completion.tokens, texts, strict=True)
        meta["output_token_logprobs"] = [list(entry) for entry in chosen]
        if top:
            alone = tokenizer.alone if with_text else _no_text
            meta["output_top_logprobs"] = [
                [[p, i, alone(i)] for p, i in zip(logprobs[:top], ids[:top], strict=True)]
                for logprobs, ids in zip(completion.top_logprobs, completion.top_ids, strict=True)
            ]
    return meta


def _no_text(token: int) -> None:
    return None
