"""A vote that takes the tree's shape out: what share of fresh samples would end at each leaf.

A search that returns to a branch again and again multiplies that branch's votes. Here every
node's draws count as what they are, samples of what comes next: the chance of a leaf is
estimated as the product, down its path, of the share of the draws at each node that took
the path's next step. For independent samples that is one vote each.
"""

from __future__ import annotations

from collections import Counter

from marco_search.evaluation.traces import Trace


def leaf_shares(trace: Trace) -> dict[int, float]:
    """Estimated chance of each leaf that has an answer; they sum to at most 1."""
    draws: Counter[int] = Counter()
    taken: Counter[tuple[int, int]] = Counter()
    for rollout in trace.rollouts:
        begin = rollout.path.index(rollout.start)
        for at, to in zip(rollout.path[begin:-1], rollout.path[begin + 1 :], strict=True):
            draws[at] += 1
            taken[at, to] += 1
    shares: dict[int, float] = {}
    for rollout in trace.rollouts:
        if rollout.answer is None or rollout.path[-1] in shares:
            continue
        share = 1.0
        for at, to in zip(rollout.path, rollout.path[1:], strict=False):
            share *= taken[at, to] / draws[at]
        shares[rollout.path[-1]] = share
    return shares
