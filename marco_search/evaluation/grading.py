"""Grades traces against the labels, whole and cut short, after the searches have ended.

A run can be cut because rollouts come in a fixed order and none looks ahead: the first i
rollouts of a run of n are the run of i, for independent samples and for a tree alike (as long
as neither a token budget nor an early stop depends on n; a search that stopped early simply
stays at its last answer). Stored trees are graded under other rewards and votes as well, without
generating a token: the answer is the one that the same rollouts would have given.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

from marco_search.errors import InvalidDataSet
from marco_search.evaluation.data_sets import Problem
from marco_search.evaluation.statistics import accuracy, auroc, paired, ratio, rounded
from marco_search.evaluation.traces import Trace, TracedRollout, with_vote
from marco_search.kinds import kind_of
from marco_search.search.mcts import Merge
from marco_search.search.rewards import EXTERNAL, REWARDS, ScoredRollout, voters
from marco_search.search.votes import Aggregation, Candidate, RankedAnswer, Scale, posterior, rank

VOTES = (*(str(how) for how in Aggregation), "borda", "tree")


class Grader:
    """Whether answers are right; each distinct answer of a problem is compared once."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self._problems = {p.key: p for p in problems}
        self._labelled = {p.key for p in problems if p.expected}
        self._known: dict[tuple[str, str], bool] = {}

    def __contains__(self, key: object) -> bool:
        """Whether it is the key of a problem with a label."""
        return key in self._labelled

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
        """Whether the answer of the whole search is right."""
        return self.right(trace.key, chosen(trace), trace.answers)

    def rollouts(self, trace: Trace) -> list[bool]:
        """For each rollout with an answer, whether that is right."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescored:
    """The accuracy of a run under one reward and vote."""

    reward: str
    vote: str
    sharpness: float
    n: int
    accuracy: float  #: share of problems solved
    low: float  #: 95 % Wilson interval
    high: float
    auroc: float | None  #: of the reward against correctness, over all rollouts
    auroc_within: float | None  #: mean over the problems with right and wrong rollouts
    right: tuple[bool, ...]  #: of each trace, in order

    def to_json(self) -> dict[str, Any]:
        """All but the individual outcomes."""
        data = {name: rounded(value) for name, value in asdict(self).items() if name != "right"}
        return data | {"sharpness": self.sharpness}


def rescore(
    traces: Sequence[Trace],
    grader: Grader,
    *,
    reward: str,
    vote: str = "weighted",
    sharpness: float = 1.0,
) -> Rescored:
    """The run under `reward` (a name in REWARDS) and `vote` (one of VOTES).

    Raises InvalidDataSet for an unknown name and for traces without token scores.
    """
    right, values, labels, within = [], list[float](), list[bool](), list[float]()
    for trace in traces:
        best = _ranked(trace, reward, vote, sharpness)
        scores = [score(trace, r, reward) for r in trace.answered]
        right.append(grader.right(trace.key, best[0].key if best else None, trace.answers))
        solved = grader.rollouts(trace)
        values += scores
        labels += solved
        if (one := auroc(scores, solved)) is not None:
            within.append(one)
    return Rescored(
        reward=reward,
        vote=vote,
        sharpness=sharpness,
        **accuracy(right),
        right=tuple(right),
        auroc=auroc(values, labels),
        auroc_within=sum(within) / len(within) if within else None,
    )


def answer_under(
    trace: Trace, *, reward: str, vote: str, sharpness: float, merge: Merge
) -> tuple[str | None, float]:
    """The answer that the tree gives under a reward and a vote, and its share of the vote.

    `merge` is that of the job's kind. None and 0 for a tree without answers. Raises
    InvalidDataSet as `rescore` does.
    """
    best = _ranked(trace, reward, vote, sharpness, merge)
    if not best:
        return None, 0.0
    return trace.rollouts[best[0].best_rollout_id].answer, best[0].share


def _ranked(
    trace: Trace, reward: str, vote: str, sharpness: float, merge: Merge | None = None
) -> list[RankedAnswer]:
    """The answers, best first: under its own reward and vote as the search ranks them."""
    if reward not in REWARDS or vote not in VOTES:
        raise InvalidDataSet(
            f"can't score by {reward!r} and {vote!r}; use a reward of {', '.join(REWARDS)} "
            f"and a vote of {', '.join(VOTES)}"
        )
    own, (places, rewarded) = reward == trace.reward, voters(trace.rollouts, reward)
    rollouts = [trace.rollouts[i] for i in places]
    values = [r.weight if own else _weight(trace, r, reward) for r in rollouts]
    keys = [str(r.answer) for r in rollouts]
    if merge:
        keys = merge(list(zip(keys, values, strict=True)))
    scale = replace(trace.scale if own else Scale(), sharpness=sharpness)
    how = "weighted" if vote in ("borda", "tree") else vote
    if vote == "borda":
        # (n - rank + 1)^p for the rank-th best of n (self-certainty, section 3.3).
        for place, i in enumerate(sorted(range(len(values)), key=lambda i: -values[i])):
            values[i] = 1 - place / len(values)
        scale = Scale(sharpness=sharpness)
    if vote == "tree":
        # A leaf's share, split among the rollouts that end there.
        leaves, shares = [r.path[-1] for r in rollouts], leaf_shares(trace)
        values = [
            scale.weight(value) * shares[leaf] / leaves.count(leaf)
            for value, leaf in zip(values, leaves, strict=True)
        ]
        scale = Scale()
    candidates = list(map(Candidate, keys, values, places))
    return rank(candidates, Aggregation(how if rewarded else "vote"), scale)


def _weight(trace: Trace, rollout: TracedRollout, reward: str) -> float:
    """What a rollout's vote weighs under a reward that is not the search's own."""
    return rollout.path_confidence if reward == "rollout" else score(trace, rollout, reward)


def score(trace: Trace, rollout: TracedRollout, reward: str) -> float:
    """A rollout's reward. Without token scores only a few are known."""
    if reward in EXTERNAL and not any(r.scores for r in trace.rollouts):
        raise InvalidDataSet(f"problem {trace.key}: nothing gave its rollouts scores for {reward}")
    if not trace.scores and reward not in EXTERNAL:
        if reward == "confidence":
            return rollout.path_confidence
        if reward == "rollout":
            return rollout.confidence
        if reward != "agreement":
            raise InvalidDataSet(f"problem {trace.key}: no token scores kept; run with --trees")
    return REWARDS[reward](
        ScoredRollout(
            path=[trace.scores[i] for i in rollout.path] if trace.scores else [],
            start=rollout.path.index(rollout.start),
            answer=rollout.answer,
            others=[other.answer for other in trace.rollouts if other is not rollout],
            scores=rollout.scores or (),
        )
    )


def leaf_shares(trace: Trace) -> dict[int, float]:
    """The share of independent samples that would end at each leaf with an answer.

    A search that returns to a branch again and again multiplies that branch's votes. Here the
    chance of a leaf is the product, down its path, of the share of the draws at each node that
    took the path's next step. For independent samples that is one vote each.
    """
    draws: Counter[int] = Counter()
    taken: Counter[tuple[int, int]] = Counter()
    for rollout in trace.rollouts:
        own = rollout.path[rollout.path.index(rollout.start) :]
        draws.update(own[:-1])
        taken.update(pairwise(own))
    return {
        r.path[-1]: math.prod(taken[step] / draws[step[0]] for step in pairwise(r.path))
        for r in trace.answered
    }
