"""Accuracy over tokens, from one run: what the search had answered after its first rollouts.

Valid because rollouts come in a fixed order and none looks ahead: the first i rollouts of a
run of n are the run of i, for independent samples and for a tree alike (as long as neither a
token budget nor an early stop depends on n; a search that stopped early simply stays at its
last answer).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from marco_search.evaluation.grading import Grader, ranked
from marco_search.evaluation.traces import Trace
from marco_search.search.votes import lead as lead_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """All problems of a run, cut after at most `rollouts` rollouts each."""

    rollouts: int
    tokens_per_problem: float  #: generated
    right: tuple[bool, ...]  #: of each trace, in order

    @property
    def accuracy(self) -> float:
        """Share of problems solved."""
        return sum(self.right) / len(self.right)


def point(traces: Sequence[Trace], grader: Grader, rollouts: int) -> Point:
    """The run at `rollouts` rollouts."""
    return _cut(traces, grader, [rollouts] * len(traces))


def curve(traces: Sequence[Trace], grader: Grader) -> list[Point]:
    """The run at 1, 2, ... rollouts; empty without traces."""
    longest = max((len(t.rollouts) for t in traces), default=0)
    return [point(traces, grader, i) for i in range(1, longest + 1)]


def stopped(traces: Sequence[Trace], grader: Grader, lead: float) -> Point:
    """The run with every search ended as soon as its vote is led by `lead`.

    Valid for a lead no greater than the one the run was made with: a search looks at its lead
    after each round only.
    """
    return _cut(traces, grader, [_until_led(trace, lead) for trace in traces])


def _cut(traces: Sequence[Trace], grader: Grader, lengths: Sequence[int]) -> Point:
    """The run with each search cut after so many rollouts."""
    cut = [replace(t, rollouts=t.rollouts[:n]) for t, n in zip(traces, lengths, strict=True)]
    return Point(
        rollouts=max(lengths, default=0),
        tokens_per_problem=sum(t.tokens for t in cut) / max(1, len(cut)),
        right=tuple(map(grader.solved, cut)),
    )


def _until_led(trace: Trace, lead: float) -> int:
    """Rollouts up to the end of the first round that the vote is led by `lead` after."""
    for i, rollout in enumerate(trace.rollouts, start=1):
        ended = i == len(trace.rollouts) or trace.rollouts[i].round != rollout.round
        if ended and lead_of(ranked(trace.rollouts[:i], trace.choice, trace.sharpness)) >= lead:
            return i
    return len(trace.rollouts)


def at_least(points: Sequence[Point], tokens_per_problem: float) -> Point | None:
    """The first point of a curve that uses at least so many tokens; None if none does.

    This favours the curve's strategy in a comparison at equal tokens.
    """
    return next((p for p in points if p.tokens_per_problem >= tokens_per_problem), None)


def tokens_to_reach(points: Sequence[Point], accuracy: float) -> float | None:
    """Tokens per problem at the first point with at least this accuracy; None if there is none."""
    return next((p.tokens_per_problem for p in points if p.accuracy >= accuracy), None)


def coverage(traces: Sequence[Trace], grader: Grader, rollouts: int) -> tuple[bool, ...]:
    """Of each trace: whether one of its first `rollouts` rollouts has a right answer."""
    return tuple(
        any(grader.right(t.key, r.answer, t.answers) for r in t.rollouts[:rollouts]) for t in traces
    )
