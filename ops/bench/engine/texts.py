"""What the simulated server writes: thoughts of a few steps and an answer, made in advance.

The length of a branch follows what its prefix holds already, as with a model: thoughts have
6 to 11 steps of 12 to 24 tokens, which is what a word problem of MGSM takes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from random import Random

from marco_search.search.branches import END_OF_OUTPUT, END_OF_THOUGHT, TOP_K

VARIANTS = 16
_ASSISTANT = "<|im_start|>assistant\n"
_THOUGHT = "<Thought>\n"
_WORDS = [
    "so",
    "the",
    "sum",
    "of",
    "all",
    "that",
    "is",
    "left",
    "then",
    "we",
    "add",
    "two",
    "more",
    "and",
    "see",
    "it",
]


def completion_of(prefix: str, seed: int) -> tuple[int, int]:
    """(variant, steps left to write) for a branch."""
    variant = seed % VARIANTS
    turn = prefix[prefix.rfind(_ASSISTANT) + len(_ASSISTANT) :]
    if END_OF_THOUGHT in turn:
        return variant, 0
    return variant, max(1, 6 + variant % 6 - (turn.count("\n") - 1))


@cache
def _pieces(variant: int, steps: int) -> list[str]:
    """Tokens of a completion."""
    random = Random(f"{variant} {steps}")
    pieces: list[str] = []
    for _ in range(steps):
        pieces += [f" {random.choice(_WORDS)}" for _ in range(random.randrange(12, 25))]
        pieces[-1] += "\n"
    if steps:
        pieces.append(END_OF_THOUGHT)
    return [*pieces, "\n", "<Output>", "\n", str(random.randrange(3)), "\n", END_OF_OUTPUT]


@cache
def completion(variant: int, steps: int) -> tuple[str, int, bytes]:
    """(text with the stop string, its tokens, the JSON of both without what is known later)."""
    random = Random(f"logprobs {variant} {steps}")
    pieces = _pieces(variant, steps)
    text = "".join(pieces)
    meta = {
        "finish_reason": {"type": "stop", "matched": END_OF_OUTPUT},
        "completion_tokens": len(pieces),
        "output_token_logprobs": [[-random.random(), 1000 + i, p] for i, p in enumerate(pieces)],
        "output_top_logprobs": [
            [[-random.random() * 3, 2000 + k, random.choice(_WORDS)] for k in range(TOP_K)]
            for _ in pieces
        ],
    }
    answer = {"text": text.removesuffix(END_OF_OUTPUT), "meta_info": meta}
    return text, len(pieces), json.dumps(answer).encode().removesuffix(b"}}")


def chat_prompt(messages: Sequence[Mapping[str, str]]) -> str:
    """The messages in ChatML, with the answer's thought begun as our own prompts begin it.

    A last message that ends in a thought is gone on with.
    """
    *before, last = messages
    said, _, thought = last["content"].partition(_THOUGHT)
    turns = [(m["role"], m["content"]) for m in before] + [(last["role"], said)]
    told = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
    return told + _ASSISTANT + _THOUGHT + thought


@cache
def chat_completion(
    variant: int, steps: int, stop: tuple[str, ...], most: int
) -> tuple[str, int, str]:
    """(text up to a stop string or `most` tokens, its tokens, the reason of its end)."""
    text = ""
    for tokens, piece in enumerate(_pieces(variant, steps), 1):
        text += piece
        ends = [at for at in (text.find(word) for word in stop) if at >= 0]
        if ends:
            return text[: min(ends)], tokens, "stop"
        if tokens == most:
            return text, tokens, "length"
    return text, tokens, "stop"


def make_all() -> None:
    """Write all of them now, so that no request waits for it."""
    for variant in range(VARIANTS):
        for steps in range(12):
            completion(variant, steps)
