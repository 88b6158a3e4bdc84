"""What an evaluation stores of each search: rollouts, answers and token scores, no labels.

A trace is one line of JSON. From it every figure of the report follows, as does what the search
would have answered under other rewards and votes and at a smaller budget (`grading`), without
generating a token.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from pydantic import TypeAdapter

from marco_search.errors import InvalidDataSet
from marco_search.jobs import Job
from marco_search.kinds import kind_of
from marco_search.search.branches import ReflectionPlacement, without_room
from marco_search.search.config import SearchConfig
from marco_search.search.rewards import CONFIDENCE, TokenScores, token_scores
from marco_search.search.tree import Tree, shortfall
from marco_search.search.votes import Scale

DIGITS = 5
"""Decimals of the scores in a trace; of a rollout's value, digits that count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedRollout:
    """A rollout in a trace."""

    answer: str | None  #: key into Trace.answers
    round: int
    start: int  #: index of the node it was forked from
    path: tuple[int, ...]  #: indices of its nodes, root first
    generated: int  #: tokens
    prompt: int  #: tokens of the forked prefix
    cached: int  #: of those, from the prefix cache
    confidence: float  #: mean c_i over the rollout's own tokens
    path_confidence: float  #: mean c_i over its path
    failed: bool = False  #: the runtime gave no text, or what scores it no scores
    shortfall: str | None = None  #: see search.tree.Shortfalls
    scores: tuple[float, ...] | None = None  #: from outside: see `rewards.EXTERNAL`
    value: float | None = None  #: what its vote weighs; None: its path's confidence
    redo: bool = False  #: begins with the reflection phrase

    @property
    def weight(self) -> float:
        """The weight of its vote."""
        return self.path_confidence if self.value is None else self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One search over one problem."""

    key: str  #: of the problem
    run: str  #: hash of everything that decided how the search ran
    choice: str  #: how the answer is chosen: "vote", "weighted" or "best"
    sharpness: float  #: power of a weighted vote's weights
    stop_reason: str
    seconds: float
    answers: dict[str, str]  #: answer key -> the Output part as written
    rollouts: tuple[TracedRollout, ...]  #: in id order
    scores: tuple[TokenScores, ...] = ()  #: of each node; empty if not kept
    texts: tuple[str, ...] = ()  #: of each node; empty if not kept
    spread: float = 1.0  #: of the weighted vote: see `votes.Scale`
    reference: float = 0.0
    model: str = ""  #: and its revision; empty in traces of older versions
    reward: str = "confidence"  #: what a vote weighs
    profile: str = ""  #: its label; empty in traces of older versions

    @property
    def scale(self) -> Scale:
        """The weights of values in its vote."""
        return Scale(sharpness=self.sharpness, spread=self.spread, reference=self.reference)

    @property
    def tokens(self) -> int:
        """Tokens generated."""
        return sum(r.generated for r in self.rollouts)

    @property
    def failed(self) -> int:
        """Rollouts that got no text, or no scores."""
        return sum(r.failed for r in self.rollouts)

    @property
    def answered(self) -> list[TracedRollout]:
        """The rollouts that have an answer."""
        return [r for r in self.rollouts if r.answer is not None]


def with_vote(traces: Sequence[Trace], choice: str) -> list[Trace]:
    """The same searches with their answers chosen by another vote."""
    return [replace(t, choice=choice, sharpness=1.0) for t in traces]


_TRACE = TypeAdapter(Trace)


def read(file: Path) -> list[Trace]:
    """The traces of a file. A last line that was cut off by an interruption is left out.

    Raises InvalidDataSet for any other line that is not a trace.
    """
    *lines, _ = file.read_bytes().split(b"\n")
    traces = []
    for i, line in enumerate(lines, start=1):
        try:
            traces.append(_TRACE.validate_python(json.loads(line)))
        except (ValueError, RecursionError):
            raise InvalidDataSet(f"{file}, line {i}: not a trace of an evaluation") from None
    return traces


def end_line(file: Path) -> None:
    """Remove an incomplete last line, so that the next one begins on a new line."""
    with file.open("ab+") as lines:
        lines.seek(0)
        lines.truncate(lines.read().rfind(b"\n") + 1)


def write(out: TextIO, trace: Trace) -> None:
    """Append one trace as a line."""
    out.write(_line(trace) + "\n")
    out.flush()


def digest(trace: Trace) -> str:
    """SHA-256 of a trace's line, without the line end, in hexadecimal."""
    return hashlib.sha256(_line(trace).encode()).hexdigest()


def _line(trace: Trace) -> str:
    return json.dumps(asdict(trace), ensure_ascii=False)


def traced(
    key: str, job: Job, tree: Tree, *, config: SearchConfig, keep_tokens: bool, **facts: Any
) -> Trace:
    """The trace of a search from its tree. `facts`: run, stop_reason, seconds and model."""
    kind, turn, answers = kind_of(job), config.turn, dict[str, str]()
    for r in tree.rollouts:
        if r.answer is not None and r.answer not in answers:
            text = turn.opening + "".join(tree.nodes[i].text for i in r.path)
            answers[r.answer] = kind.output(text, turn) or r.answer
    rollouts = (
        TracedRollout(
            answer=r.answer,
            round=r.round,
            start=r.start_id,
            path=r.path,
            generated=r.generated_tokens,
            prompt=r.prompt_tokens,
            cached=r.cached_tokens,
            confidence=round(r.confidence, DIGITS),
            path_confidence=round(r.path_confidence, DIGITS),
            # A path that fills the model's context ends there for good.
            failed=r.error is not None and not without_room(r.error),
            shortfall=shortfall(r, tree.nodes[r.leaf_id].action),
            scores=r.scores,
            # Digits that count: values of a weak model may be very small.
            value=None if config.reward in CONFIDENCE else float(f"{r.value:.{DIGITS}g}"),
            redo=r.reflect is ReflectionPlacement.FIRST,
        )
        for r in tree.rollouts
    )
    nodes = tree.nodes if keep_tokens else []
    scores = (asdict(token_scores(n.tokens, n.confidences)) for n in nodes)
    return Trace(
        key=key,
        choice=str(config.choice),
        sharpness=config.sharpness,
        reward=config.reward,
        profile=config.profile,
        spread=config.spread,
        reference=config.reference,
        answers=answers,
        rollouts=tuple(rollouts),
        scores=tuple(
            TokenScores(**{name: tuple(round(x, DIGITS) for x in xs) for name, xs in one.items()})
            for one in scores
        ),
        texts=tuple(n.text for n in nodes),
        **facts,
    )
