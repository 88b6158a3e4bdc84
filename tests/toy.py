"""A toy language model for tests of the search: tokens drawn from a seed, no weights.

What it generates depends only on the prefix and the branch's seed, as with a real engine.
It writes a few steps, closes the thought and gives one of a few answers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from marco_search.runtime.base import RuntimeInfo
from marco_search.search.branches import (
    MARCO_O1,
    Branch,
    BranchRequest,
    Expansion,
    Finish,
    Message,
    ReflectionPlacement,
    Segment,
    Token,
)

PIECES = re.compile(r"</?Thought>|</?Output>|\n|[^\n<]{1,3}")
PROMPT = "Q\n<Thought>\n"
STEPS = 0, 4
"""The least and one more than the most steps that it writes."""


def answer_of(text: str) -> str | None:
    """What stands in the output, None if the output never closed."""
    found = re.search(r"<Output>\s*(.+?)\s*</Output>", text, re.S)
    return found.group(1) if found else None


def tokens_of(prefix: str, text: str) -> tuple[Token, ...]:
    """Tokens with made-up log-probs (float32 values) whose texts joined are `text`.

    As in a real model they depend on all the text before them, not on the seed.
    """
    tokens = []
    for piece in PIECES.findall(text):
        random = Random(prefix)
        prefix += piece
        top = sorted((-random.randrange(1, 64) / 16 for _ in range(5)), reverse=True)
        ids = [hash_of(piece) % 1000] + [1000 + i for i in range(4)]
        tokens.append(Token(ids[0], piece, top[0], tuple(zip(ids, top, strict=True))))
    return tuple(tokens)


def hash_of(text: str) -> int:
    """A hash that is the same in every process."""
    return Random(text).getrandbits(31)


def write(prefix: str, seed: int, answers: Sequence[str], steps: tuple[int, int]) -> str:
    """The toy model's whole continuation of `prefix`, with so many steps (least, most + 1)."""
    random = Random(f"{seed}|{len(prefix)}")
    out = ""
    if MARCO_O1.end_of_thought not in prefix:
        for _ in range(random.randrange(*steps)):
            out += f"step {random.choice('abc')}\n"
        out += MARCO_O1.end_of_thought
    return out + f"\n<Output>\n{random.choice(list(answers))}\n{MARCO_O1.end_of_output}"


def generate(
    prefix: str, seed: int, room: int, answers: Sequence[str], steps: tuple[int, int] = STEPS
) -> tuple[Token, ...]:
    """At most `room` tokens of what the model writes."""
    return tokens_of(prefix, write(prefix, seed, answers, steps))[:room]


def run_branch(
    prefix: str, request: BranchRequest, answers: Sequence[str], steps: tuple[int, int] = STEPS
) -> Branch:
    """One branch as a runtime would answer it."""
    segments: list[Segment] = []
    phrase = Segment(MARCO_O1.reflection + "\n")
    room, seed = request.max_new_tokens, request.seed
    if request.reflect is ReflectionPlacement.FIRST:
        segments.append(phrase)
        prefix += phrase.text
    if request.reflect is ReflectionPlacement.AT_END:
        tokens = generate(prefix, seed, room, answers, steps)
        texts = [t.text for t in tokens]
        if MARCO_O1.end_of_thought in texts:
            tokens = tokens[: texts.index(MARCO_O1.end_of_thought) + 1]
            text = "".join(texts[: len(tokens)])
            segments += [Segment(text, tokens), phrase]
            prefix += text.removesuffix(MARCO_O1.end_of_thought) + phrase.text
            room, seed = room - len(tokens), seed ^ 1
    tokens = generate(prefix, seed, room, answers, steps)
    segments.append(Segment("".join(t.text for t in tokens), tokens))
    ended = bool(tokens) and tokens[-1].text == MARCO_O1.end_of_output
    return Branch(
        branch_id=request.branch_id,
        segments=tuple(segments),
        texts={
            i: t.text if i == t.id else f"other {i}"
            for segment in segments
            for t in segment.tokens
            for i, _ in t.top
        },
        finish=Finish.STOP if ended else Finish.LENGTH,
        prompt_tokens=len(prefix),
        cached_tokens=len(prefix) // 2,
    )


class ToyRuntime:
    """A `Runtime` over the toy model.

    `failing` is the share of branches that fail, `silent` of those that end without a token.
    """

    def __init__(
        self,
        answers: Sequence[str] = ("1", "2", "3"),
        failing: float = 0.0,
        steps: tuple[int, int] = STEPS,
        model: str = "toy-marco-o1",
        silent: float = 0.0,
    ) -> None:
        self.model = model
        self.silent = silent
        self.answers = answers
        self.steps = steps
        self.failing = failing
        self.peak = 0

    @property
    def info(self) -> RuntimeInfo:
        """A model that does not exist."""
        return RuntimeInfo(
            name="toy", version="0", model=self.model, revision="0" * 64, context_tokens=4096
        )

    def render(self, messages: Sequence[Message], options: Mapping[str, Any] | None = None) -> str:
        """One line a message."""
        return "".join(f"{m.role}: {m.content}\n" for m in messages)

    def branch(self, expansions: Sequence[Expansion]) -> list[Branch]:
        """All branches, some of them failed."""
        pairs = [(e.prefix, r) for e in expansions for r in e.branches]
        self.peak = max(self.peak, len(pairs))
        return [
            Branch(branch_id=r.branch_id, finish=Finish.FAILED, error="made to fail")
            if Random(f"fail{r.seed}").random() < self.failing
            else Branch(branch_id=r.branch_id, finish=Finish.STOP)
            if Random(f"silent{r.seed}").random() < self.silent
            else run_branch(prefix, r, self.answers, self.steps)
            for prefix, r in pairs
        ]

    def abort(self) -> None:
        """Nothing is ever in flight."""

    def close(self) -> None:
        """Nothing to close."""
