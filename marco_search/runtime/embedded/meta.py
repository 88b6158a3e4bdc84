"""Writes completions as SGLang does: the text and the `meta_info` beside it."""

from __future__ import annotations

from typing import Any

from marco_search.runtime.embedded.requests import Completion, TokenScore
from marco_search.runtime.embedded.tokenizer import Tokenizer

Meta = dict[str, Any]


def completion_text(tokenizer: Tokenizer, completion: Completion) -> str:
    """The generated text up to the stop string, as SGLang trims it."""
    text = "".join(tokenizer.pieces(t.id for t in completion.tokens))
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
) -> Meta:
    """SGLang's `meta_info` of a completion.

    Log-probs are the model's own, at temperature 1. With text, a chosen token's text is what it
    completes: "" inside a character and for the end of the sequence.
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
        tokens = completion.tokens
        texts: list[str | None] = [None] * len(tokens)
        if with_text:
            texts = list(tokenizer.pieces(t.id for t in tokens))
        meta["output_token_logprobs"] = [
            [t.logprob, t.id, text] for t, text in zip(tokens, texts, strict=True)
        ]
        if top:
            meta["output_top_logprobs"] = [_top(tokenizer, t, top, with_text) for t in tokens]
    return meta


def _top(tokenizer: Tokenizer, score: TokenScore, top: int, with_text: bool) -> list[list[Any]]:
    return [
        [logprob, i, tokenizer.alone(i) if with_text else None] for i, logprob in score.top[:top]
    ]
