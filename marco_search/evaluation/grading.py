"""Grades traces against the labels, after the searches have ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from marco_search.evaluation.data_sets import Problem
from marco_search.evaluation.traces import Trace, TracedRollout
from marco_search.kinds import kind_of


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
        answer = chosen(trace.rollouts, trace.choice, trace.sharpness)
        return self.right(trace.key, answer, trace.answers)


@dataclass(frozen=True, slots=True)
class Vote:
    """One rollout's vote for an answer."""

    answer: str
    weight: float


def choose(votes: Sequence[Vote], how: str) -> str | None:
    """The chosen answer: the greatest sum of weights, or the single greatest for "best".

    "vote" counts every weight as 1. Ties go to the greatest single weight, then to the
    answer that came first, as in the search itself. None without votes.
    """
    total: dict[str, float] = {}
    best: dict[str, float] = {}
    for vote in votes:
        best[vote.answer] = max(best.get(vote.answer, 0.0), vote.weight)
        total[vote.answer] = total.get(vote.answer, 0.0) + (1.0 if how == "vote" else vote.weight)
    ranked_by = best if how == "best" else total
    return max(ranked_by, key=lambda a: (round(ranked_by[a], 9), best[a]), default=None)


def chosen(rollouts: Sequence[TracedRollout], how: str, sharpness: float) -> str | None:
    """The answer that the search gives after these rollouts."""
    return choose(
        [Vote(r.answer, r.path_confidence**sharpness) for r in rollouts if r.answer is not None],
        how,
    )
