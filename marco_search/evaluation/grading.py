"""Grades traces against the labels, whole and cut short, after the searches have ended.

A run can be cut because rollouts come in a fixed order and none looks ahead: the first i
rollouts of a run of n are the run of i, for independent samples and for a tree alike (as long
as neither a token budget nor an early stop depends on n; a search that stopped early simply
stays at its last answer).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from marco_search.evaluation.data_sets import Problem
from marco_search.evaluation.statistics import paired, ratio
from marco_search.evaluation.traces import Trace, with_vote
from marco_search.kinds import kind_of
from marco_search.search.rewards import voters
from marco_search.search.votes import Aggregation, Candidate, RankedAnswer, posterior, rank


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
    made = trace.rollouts[:rollouts]
    voting, rewarded = voters(made, trace.reward)
    candidates = [Candidate(str(made[i].answer), made[i].weight, i) for i in voting]
    choice = Aggregation(trace.choice) if rewarded else Aggregation.VOTE
    return rank(candidates, choice, trace.scale)


def chosen(trace: Trace) -> str | None:
    """The answer that the search gives."""
    answers = ranked(trace)
    return answers[0].key if answers else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """All problems of a run, cut after at most `rollouts` rollouts each."""

    rollouts: int
    tokens: tuple[int, ...]  #: generated, of each trace, in order
    right: tuple[bool, ...]  #: of each trace, in order

    @property
    def tokens_per_problem(self) -> float:
        """Mean of the generated tokens."""
        return sum(self.tokens) / max(1, len(self.tokens))

    @property
    def accuracy(self) -> float:
        """Share of problems solved."""
        return sum(self.right) / max(1, len(self.right))


def point(traces: Sequence[Trace], grader: Grader, rollouts: int) -> Point:
    """The run at `rollouts` rollouts."""
    return graded(cut(traces, [rollouts] * len(traces)), grader)


def curve(traces: Sequence[Trace], grader: Grader) -> list[Point]:
    """The run at 1, 2, ... rollouts; empty without traces."""
    longest = max((len(t.rollouts) for t in traces), default=0)
    return [point(traces, grader, i) for i in range(1, longest + 1)]


class Stops:
    """A run whose searches can be cut where another early stop would have ended them.

    After each round a search compares how sure its vote is (`_sure`) with the level that it was
    given. Valid for levels no greater than the one the run was made with. The rollouts are the
    same whatever chooses the answer, so one run and one stop serve every vote.
    """

    def __init__(self, traces: Sequence[Trace]) -> None:
        self.traces = traces
        self._rounds = [list(_rounds(trace)) for trace in traces]

    def at(self, grader: Grader, level: float, choice: str | None = None) -> Point:
        """The run at a level, with the answers chosen by `choice` (default: the run's own)."""
        traces = with_vote(self.traces, choice) if choice else self.traces
        return graded(cut(traces, self.lengths(level)), grader)

    def lengths(self, level: float) -> list[int]:
        """Rollouts of each search at a level."""
        return [_end(rounds, level)[2] for rounds in self._rounds]

    def tokens_per_problem(self, level: float) -> float:
        """Mean of the tokens at a level; it never falls as the level rises."""
        return sum(_end(rounds, level)[1] for rounds in self._rounds) / len(self._rounds)

    def level_for(self, tokens_per_problem: float, *, at_least: bool = False) -> float:
        """The greatest level that needs no more tokens than these; no label is looked at.

        With `at_least` the smallest that needs no fewer. If there is none, the nearest.
        """
        levels = sorted({math.inf, *(level for rounds in self._rounds for level, *_ in rounds)})
        found = bisect_left(levels, tokens_per_problem, key=self.tokens_per_problem)
        found = min(found, len(levels) - 1)
        over = self.tokens_per_problem(levels[found]) > tokens_per_problem
        return levels[max(0, found - 1) if over and not at_least else found]


_Round = tuple[float, int, int]
"""(greatest level so far, tokens so far, rollouts so far)"""


def _rounds(trace: Trace) -> Iterator[_Round]:
    """The rounds that are surer than all before them, and the last."""
    rollouts, tokens, greatest = trace.rollouts, 0, -math.inf
    for n, rollout in enumerate(rollouts, start=1):
        tokens += rollout.generated
        last = n == len(rollouts)
        if last or rollouts[n].round != rollout.round:
            sure = _sure(trace, n)
            if sure > greatest or last:
                greatest = max(greatest, sure)
                yield greatest, tokens, n


def _sure(trace: Trace, rollouts: int) -> float:
    return posterior(ranked(trace, rollouts))


def _end(rounds: Sequence[_Round], level: float) -> _Round:
    return next((r for r in rounds if r[0] >= level), rounds[-1])


def cut(traces: Sequence[Trace], lengths: Sequence[int]) -> list[Trace]:
    """Each search after so many rollouts."""
    return [replace(t, rollouts=t.rollouts[:n]) for t, n in zip(traces, lengths, strict=True)]


def graded(traces: Sequence[Trace], grader: Grader) -> Point:
    """The whole run."""
    return Point(
        rollouts=max((len(t.rollouts) for t in traces), default=0),
        tokens=tuple(t.tokens for t in traces),
        right=tuple(map(grader.solved, traces)),
    )


def difference(mine: Point, theirs: Point) -> dict[str, Any]:
    """Accuracy of the first less the second's, paired, and its tokens as a share of the second's.

    The fields of `statistics.Paired`, and those of `Ratio` under "tokens".
    """
    tokens = asdict(ratio(mine.tokens, theirs.tokens))
    return asdict(paired(mine.right, theirs.right)) | {"tokens": tokens}


def coverage(traces: Sequence[Trace], grader: Grader, rollouts: int) -> tuple[bool, ...]:
    """Of each trace: whether one of its first `rollouts` rollouts has a right answer."""
    return tuple(any(grader.rollouts(replace(t, rollouts=t.rollouts[:rollouts]))) for t in traces)
