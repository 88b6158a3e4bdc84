"""`sgl.select`: which of several texts the model finds most probable after a prefix."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from marco_search.errors import BranchFailed
from marco_search.runtime.embedded.requests import Completion, GenerationRequest
from marco_search.runtime.embedded.tokenizer import TokenIds

Entry = list[Any]
"""[log-prob or None, token id, None], as SGLang gives them."""


class Scorer(Protocol):
    """What choices are scored with; the embedded backend."""

    def encode(self, text: str) -> TokenIds:
        """The token ids of `text`."""
        ...

    def run(self, request: GenerationRequest) -> Completion:
        """The answer to a request."""
        ...


def score_choices(scorer: Scorer, prefix: str, choices: list[str], method: Any) -> Any:
    """Score every choice after `prefix` and let `method` (sglang.lang.choices) decide.

    A choice counts from the first token in which it differs from the prefix alone, so a token
    that spans the border is scored as the model would have written it.
    """
    if not choices:
        raise BranchFailed("select needs at least one choice")
    prompt = scorer.encode(prefix)
    if len(prompt) == 0:
        raise BranchFailed("select needs text before the choices")
    scorer.run(GenerationRequest(ids=prompt, max_new_tokens=0))
    scored = [_entries(scorer, scorer.encode(prefix + choice), prompt) for choice in choices]
    alone = None
    if method.requires_unconditional_logprobs:
        alone = [_unconditional(scorer, [entry[1] for entry in entries]) for entries in scored]
    return method(
        choices=choices,
        normalized_prompt_logprobs=[float(np.mean([e[0] for e in es])) for es in scored],
        input_token_logprobs=scored,
        output_token_logprobs=[[] for _ in choices],
        unconditional_token_logprobs=alone,
    )


def _entries(scorer: Scorer, ids: TokenIds, prompt: TokenIds) -> list[Entry]:
    shared = min(len(ids), len(prompt))
    differs = np.flatnonzero(ids[:shared] != prompt[:shared])
    start = int(differs[0]) if differs.size else shared
    # Never nothing: an empty choice is scored by the prefix's last token.
    start = max(1, min(start, len(ids) - 1))
    request = GenerationRequest(ids=ids, max_new_tokens=0, score_from=start)
    scores = scorer.run(request).scores
    found = [[p, int(i), None] for p, i in zip(scores, ids[start:], strict=True)]
    if not found:
        raise BranchFailed("the prefix is too short to score a choice after it")
    return found


def _unconditional(scorer: Scorer, ids: list[int]) -> list[Entry]:
    entries: list[Entry] = [[None, ids[0], None]]
    if len(ids) > 1:
        request = GenerationRequest(ids=np.array(ids, np.int32), max_new_tokens=0, score_from=1)
        scores = scorer.run(request).scores
        entries += [[p, i, None] for p, i in zip(scores, ids[1:], strict=True)]
    return entries
