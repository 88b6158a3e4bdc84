"""Batched decoding for evaluation, with the confidence of each token (torch, fp32).

transformers does the forward pass, so that the figures of the model card do not rest on our engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from ops.pocket.tokenizer import CONTEXT, END_OF_TURN, token_id, user_prompt

# Every prompt ends inside the thought, as the product's prompts do.
THOUGHT_OPENING = "<Thought>\n"
TOP = 5
ROWS = 128  # prompts that are decoded together


@dataclass
class Completion:
    """Generated ids (with the end of turn, if reached) and c_i of each token."""

    ids: list[int] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    #: The generated text without special tokens; the tags stay.
    text: str = ""

    @property
    def mean_confidence(self) -> float:
        """v = mean of c_i (Marco-o1, section 4)."""
        return sum(self.confidences) / max(1, len(self.confidences))


class Decoder:
    """A Hugging Face folder, ready to decode batches on the CPU."""

    def __init__(self, folder: Path) -> None:
        from transformers import Qwen2ForCausalLM

        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.model: Any = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.stop = token_id(self.tokenizer, END_OF_TURN)

    def prompt(self, user: str, thought: str = "") -> list[int]:
        """Ids of a prompt that ends in an open thought, with `thought` already written."""
        ids: list[int] = self.tokenizer.encode(user_prompt(user) + THOUGHT_OPENING + thought).ids
        return ids

    def complete(
        self, prompts: Sequence[list[int]], temperature: float, seed: int = 0
    ) -> list[Completion]:
        """Completions in the order of the prompts. Temperature 0 is greedy.

        The confidence is always taken at temperature 1. `seed` is that of the whole call.
        """
        generator = torch.Generator().manual_seed(seed)
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        done = [Completion() for _ in prompts]
        for begin in range(0, len(order), ROWS):
            part = order[begin : begin + ROWS]
            batch = [prompts[i] for i in part]
            with torch.inference_mode():
                self._complete(batch, [done[i] for i in part], temperature, generator)
        for completion in done:
            completion.text = self.tokenizer.decode(completion.ids, skip_special_tokens=True)
        return done

    def _complete(
        self,
        prompts: list[list[int]],
        alive: list[Completion],
        temperature: float,
        generator: torch.Generator,
    ) -> None:
        from transformers import DynamicCache

        longest = max(map(len, prompts))  # padding on the left: the last column is real
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        positions, cache = (mask.cumsum(1) - 1).clamp(min=0), DynamicCache(config=self.model.config)
        while True:
            logits = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                logits_to_keep=1,
            ).logits[:, -1]
            chosen, confidences = _choose(logits, temperature, generator)
            for row, completion in enumerate(alive):
                completion.ids.append(int(chosen[row]))
                completion.confidences.append(float(confidences[row]))
            keep = (chosen != self.stop).nonzero()[:, 0]
            if len(keep) == 0 or mask.shape[1] + 1 >= CONTEXT:
                return
            if len(keep) < len(alive):
                cache.batch_select_indices(keep)
            alive = [alive[index] for index in keep.tolist()]
            ids, positions = chosen[keep, None], positions[keep, -1:] + 1
            mask = torch.cat([mask[keep], torch.ones(len(alive), 1, dtype=torch.long)], 1)


def _choose(
    logits: Tensor, temperature: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Chosen ids [rows] and c_i [rows]: chosen probability over the sum of the top five."""
    logprobs = logits.float().log_softmax(-1)
    if temperature == 0:
        chosen = logprobs.argmax(-1)
    else:
        weights = (logprobs / temperature).softmax(-1)
        chosen = torch.multinomial(weights, 1, generator=generator)[:, 0]
    top = logprobs.topk(TOP, -1).values.logsumexp(-1)
    own = logprobs.gather(1, chosen[:, None])[:, 0]
    return chosen, (own - top).exp().clamp(max=1.0)
