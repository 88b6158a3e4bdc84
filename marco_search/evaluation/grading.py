"""Grades traces against the labels, whole and cut short, after the searches have ended.

A run can be cut because rollouts come in a fixed order and none looks ahead: the first i
rollouts of a run of n are the run of i, for independent samples and for a tree alike (as long
as neither a token budget nor an early stop depends on n; a search that stopped early simply
stays at its last answer).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from marco_search.evaluation.data_sets import Problem
from marco_search.evaluation.traces import Trace
from marco_search.kinds import kind_of
from marco_search.search.votes import Aggregation, Candidate, RankedAnswer, lead, rank


class Grader:
    """Whether answers are right; each distinct answer of a problem is compared once."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self._problems = {p.key: p for p in problems}
        self._known: dict[tuple[str, str], bool] = {}

    def __contains__(self, key: object) -> bool:
        return key in self._problems

    def right(self, key: str, answer: str | None, answers: Mapping[str, str]) -> bool:
        """Whether `answer` (a key of `answers`, which has its text) solves the problem `key`."""
        if answer is None:
            return False
        if (key, answer) not in self._known:
            problem = self._problems[key]
            kind, text = kind_of(problem.job), answers[answer]
            self._known[key, answer] = any(kind.equal(text, e) for e in problem.expected)
        return self._known[key, answer]

    def solved(self, trace: Trace) -> bool:
        """Whether the answer that the whole search gives is right."""
        return self.right(trace.key, chosen(trace), trace.answers)

    def rollouts(self, trace: Trace) -> list[bool]:
        """Of each rollout with an answer: whether that is right."""
        return [self.right(trace.key, r.answer, trace.answers) for r in trace.answered]


def ranked(trace: Trace, rollouts: int | None = None) -> list[RankedAnswer]:
    """The answers after so many rollouts (default: all) as the search ranks them, best first."""
    candidates = [
        Candidate(r.answer, r.path_confidence, i)
        for i, r in enumerate(trace.rollouts[:rollouts])
        if r.answer is not None
    ]
    return rank(candidates, Aggregation(trace.choice), sharpness=trace.sharpness)


def chosen(trace: Trace) -> str | None:
    """The answer that the search gives."""
    answers = ranked(trace)
    return answers[0].key if answers else None


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


def stopped(traces: Sequence[Trace], grader: Grader, at: float) -> Point:
    """The run with every search ended as soon as its vote has the lead `at`.

    Valid for a lead no greater than the one the run was made with: a search looks at its lead
    after each round only.
    """
    lengths = []
    for trace in traces:
        rounds = [r.round for r in trace.rollouts]
        ends = [i for i in range(1, len(rounds)) if rounds[i] != rounds[i - 1]]
        leads = (i for i in ends if lead(ranked(trace, i)) >= at)
        lengths.append(next(leads, len(rounds)))
    return _cut(traces, grader, lengths)


def _cut(traces: Sequence[Trace], grader: Grader, lengths: Sequence[int]) -> Point:
    """The run with each search cut after so many rollouts."""
    cut = [replace(t, rollouts=t.rollouts[:n]) for t, n in zip(traces, lengths, strict=True)]
    return Point(
        rollouts=max(lengths, default=0),
        tokens_per_problem=sum(t.tokens for t in cut) / max(1, len(cut)),
        right=tuple(map(grader.solved, cut)),
    )


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
    return tuple(any(grader.rollouts(replace(t, rollouts=t.rollouts[:rollouts]))) for t in traces)
