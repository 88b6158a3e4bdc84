"""Scores stored trees under another reward and another vote, without generating a token.

The answer is the one that the same rollouts would have given; which rollouts were made stays
as it was.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from marco_search.errors import InvalidDataSet
from marco_search.evaluation.grading import Grader
from marco_search.evaluation.statistics import accuracy, auroc, rounded
from marco_search.evaluation.traces import Trace, TracedRollout
from marco_search.search.rewards import EXTERNAL, REWARDS, ScoredRollout, voters
from marco_search.search.votes import Aggregation, Candidate, RankedAnswer, rank

VOTES = (*(str(how) for how in Aggregation), "borda", "tree")


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
        """All but the single outcomes."""
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
        best, scores = _ranked(trace, reward, vote, sharpness)
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
    trace: Trace, *, reward: str, vote: str, sharpness: float
) -> tuple[str | None, float]:
    """The answer that the tree gives under a reward and a vote, and its share of the vote.

    None and 0 for a tree without answers. Raises InvalidDataSet as `rescore` does.
    """
    best, _ = _ranked(trace, reward, vote, sharpness)
    return (best[0].key, best[0].share) if best else (None, 0.0)


def _ranked(
    trace: Trace, reward: str, vote: str, sharpness: float
) -> tuple[list[RankedAnswer], list[float]]:
    """The answers, best first, and the score of each rollout that has one."""
    if reward not in REWARDS or vote not in VOTES:
        raise InvalidDataSet(
            f"can't score by {reward!r} and {vote!r}; use a reward of {', '.join(REWARDS)} "
            f"and a vote of {', '.join(VOTES)}"
        )
    scores = [score(trace, r, reward) for r in trace.answered]
    rollouts = [trace.rollouts[i] for i in voters(trace.rollouts, reward)[0]]
    values = [score(trace, r, reward) for r in rollouts]
    how = "weighted" if vote in ("borda", "tree") else vote
    if vote == "borda":
        # (n - rank + 1)^p for the rank-th best of n (self-certainty, section 3.3).
        for place, i in enumerate(sorted(range(len(values)), key=lambda i: -values[i])):
            values[i] = 1 - place / len(values)
    weights = [value**sharpness for value in values]
    if vote == "tree":
        # A leaf's share, split among the rollouts that end there.
        leaves, shares = [r.path[-1] for r in rollouts], leaf_shares(trace)
        weights = [
            weight * shares[leaf] / leaves.count(leaf)
            for weight, leaf in zip(weights, leaves, strict=True)
        ]
    answers = [str(r.answer) for r in rollouts]
    candidates = list(map(Candidate, answers, weights, range(len(answers))))
    return rank(candidates, Aggregation(how)), scores


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
    """What share of independent samples would end at each leaf that has an answer.

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
