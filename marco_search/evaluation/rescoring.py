"""Scores stored trees under another reward and another vote, without generating a token.

The answer is the one that the same rollouts would have given; which rollouts were made stays
as it was.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from marco_search.errors import InvalidDataSet
from marco_search.evaluation.grading import Grader, Vote, choose
from marco_search.evaluation.rewards import REWARDS
from marco_search.evaluation.statistics import auroc, wilson
from marco_search.evaluation.traces import Trace

VOTES = ("vote", "weighted", "best", "borda", "tree")
SHARPNESS = (1.0, 8.0, 32.0, 128.0)
"""Powers of a weighted vote that a sweep tries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescored:
    """The accuracy of a run under one reward and vote."""

    reward: str
    vote: str
    sharpness: float
    n: int
    right: tuple[bool, ...]  #: of each trace, in order
    auroc: float | None  #: of the reward against correctness, over all rollouts
    auroc_within: float | None  #: mean over the problems with right and wrong rollouts

    @property
    def accuracy(self) -> float:
        """Share of problems solved."""
        return sum(self.right) / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval."""
        return wilson(sum(self.right), self.n)

    def to_json(self) -> dict[str, Any]:
        """All but the single outcomes."""
        low, high = self.interval
        figures = {"accuracy": self.accuracy, "low": low, "high": high}
        ranking = {"auroc": self.auroc, "auroc_within": self.auroc_within}
        return {
            "reward": self.reward,
            "vote": self.vote,
            "sharpness": self.sharpness,
            "n": self.n,
            **{k: v if v is None else round(v, 4) for k, v in (figures | ranking).items()},
        }


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
        scores, votes = _scored(trace, reward, vote, sharpness)
        solved = [grader.right(trace.key, v.answer, trace.answers) for v in votes]
        right.append(grader.right(trace.key, choose(votes, vote), trace.answers))
        values += scores
        labels += solved
        if (one := auroc(scores, solved)) is not None:
            within.append(one)
    return Rescored(
        reward=reward,
        vote=vote,
        sharpness=sharpness,
        n=len(traces),
        right=tuple(right),
        auroc=auroc(values, labels),
        auroc_within=sum(within) / len(within) if within else None,
    )


def answer_under(
    trace: Trace, *, reward: str, vote: str, sharpness: float
) -> tuple[str | None, float]:
    """The answer that the tree gives under a reward and a vote, and its share of the weight.

    None and 0 for a tree without answers. Raises InvalidDataSet as `rescore` does.
    """
    _, votes = _scored(trace, reward, vote, sharpness)
    answer = choose(votes, vote)
    whole = sum(v.weight for v in votes)
    mine = sum(v.weight for v in votes if v.answer == answer)
    return answer, mine / whole if whole else 0.0


def _scored(
    trace: Trace, reward: str, vote: str, sharpness: float
) -> tuple[list[float], list[Vote]]:
    """Of each rollout with an answer: its score under the reward, and its vote."""
    if reward not in REWARDS or vote not in VOTES:
        raise InvalidDataSet(
            f"can't score by {reward!r} and {vote!r}; use a reward of {', '.join(REWARDS)} "
            f"and a vote of {', '.join(VOTES)}"
        )
    rollouts = [r for r in trace.rollouts if r.answer is not None]
    try:
        scores = [REWARDS[reward](trace, r) for r in rollouts]
    except ValueError as error:
        raise InvalidDataSet(f"problem {trace.key}: {error}; run with --trees") from None
    if vote == "tree":
        weights = _tree_weights(trace, scores, sharpness)
    else:
        weights = _weights(scores, vote, sharpness)
    return scores, [Vote(str(r.answer), w) for r, w in zip(rollouts, weights, strict=True)]


def _weights(scores: list[float], vote: str, sharpness: float) -> list[float]:
    if vote == "borda":
        # (n - rank + 1)^p for the rank-th best of n (self-certainty, section 3.3).
        order = sorted(range(len(scores)), key=lambda i: -scores[i])
        place = {i: at for at, i in enumerate(order)}
        scores = [(len(scores) - place[i]) / len(scores) for i in range(len(scores))]
    return [s**sharpness for s in scores]


def _tree_weights(trace: Trace, scores: list[float], sharpness: float) -> list[float]:
    """A leaf's share, split among the rollouts that end there, times its weight."""
    leaves = [r.path[-1] for r in trace.rollouts if r.answer is not None]
    shares = leaf_shares(trace)
    return [
        shares[leaf] / leaves.count(leaf) * score**sharpness
        for leaf, score in zip(leaves, scores, strict=True)
    ]


def leaf_shares(trace: Trace) -> dict[int, float]:
    """What share of independent samples would end at each leaf that has an answer.

    A search that returns to a branch again and again multiplies that branch's votes. Here the
    chance of a leaf is the product, down its path, of the share of the draws at each node that
    took the path's next step. For independent samples that is one vote each.
    """
    draws: Counter[int] = Counter()
    taken: Counter[tuple[int, int]] = Counter()
    for rollout in trace.rollouts:
        own = (rollout.start, *rollout.own_path)
        draws.update(own[:-1])
        taken.update(pairwise(own))
    return {
        rollout.path[-1]: math.prod(taken[step] / draws[step[0]] for step in pairwise(rollout.path))
        for rollout in trace.rollouts
        if rollout.answer is not None
    }
