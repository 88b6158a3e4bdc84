"""Grades traces against the labels, after the searches have ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from marco_search.evaluation.data_sets import Problem
from marco_search.evaluation.traces import Trace, TracedRollout
from marco_search.kinds import kind_of
from marco_search.search.votes import Aggregation, Candidate, RankedAnswer, rank


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


def ranked(rollouts: Sequence[TracedRollout], how: str, sharpness: float) -> list[RankedAnswer]:
    """The answers of these rollouts as the search ranks them, best first."""
    candidates = [
        Candidate(r.answer, r.path_confidence, i)
        for i, r in enumerate(rollouts)
        if r.answer is not None
    ]
    return rank(candidates, Aggregation(how), sharpness=sharpness)


def chosen(rollouts: Sequence[TracedRollout], how: str, sharpness: float) -> str | None:
    """The answer that the search gives after these rollouts."""
    answers = ranked(rollouts, how, sharpness)
    return answers[0].key if answers else None
