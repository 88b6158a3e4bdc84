"""Which child to follow on the way down: UCT or PUCT, with branches in flight counted.

With n visits and o branches in flight at a child, N and O at its parent, Q the child's
value (mean, greatest or both, `backup`) and w the virtual loss:

    Q'   = Q * n / (n + w * o)                  (a branch in flight counts as w lost visits)
    UCT  = Q' + c * sqrt(2 ln(N + O) / (n + o))
    PUCT = Q' + c * P * sqrt(N + O) / (1 + n + o),  P = child's prior among its siblings

w = 0 leaves Q alone and counts branches in flight as visits only (WU-UCT). Values of a
confident model lie close together (.96 to .99), so Q is first scaled to [0, 1] by the
least and greatest value seen in the tree, unless `normalise` is off.
"""

from __future__ import annotations

from math import exp, inf, log, sqrt

from marco_search.search.config import SearchConfig, Selection
from marco_search.search.frontier import Frontier
from marco_search.search.records import ROOT
from marco_search.search.tree import Tree


class Selector:
    """The selection rule over one tree."""

    def __init__(self, tree: Tree, frontier: Frontier, config: SearchConfig) -> None:
        self._tree = tree
        self._frontier = frontier
        self._config = config

    def select(self) -> int | None:
        """The open node that the rule leads to from the root; None if none is open."""
        if not self._frontier.open_below(ROOT):
            return None
        at = ROOT
        while not self._frontier.is_open(at):
            at = self._best_child(at)
        return at

    def _best_child(self, parent: int) -> int:
        siblings = self._tree.children[parent]
        candidates = [c for c in siblings if self._frontier.open_below(c)]
        if len(candidates) == 1:
            return candidates[0]
        total = self._tree.visits[parent] + self._frontier.in_flight[parent]
        if self._config.selection is Selection.PUCT:
            priors = self._priors(siblings)
            scores = [self._puct(c, total, priors[c]) for c in candidates]
        else:
            scores = [self._uct(c, total) for c in candidates]
        # Ties go to the child that was added first.
        return candidates[scores.index(max(scores))]

    def _count(self, child: int) -> int:
        """n + o"""
        return self._tree.visits[child] + self._frontier.in_flight[child]

    def _uct(self, child: int, total: int) -> float:
        n = self._count(child)
        if n == 0:
            return inf
        bonus = sqrt(2.0 * log(max(total, 1)) / n)
        return self._quality(child) + self._config.exploration * bonus

    def _puct(self, child: int, total: int, prior: float) -> float:
        bonus = prior * sqrt(total) / (1 + self._count(child))
        return self._quality(child) + self._config.exploration * bonus

    def _quality(self, child: int) -> float:
        """Q', scaled if asked for, after virtual loss."""
        tree, n = self._tree, self._tree.visits[child]
        if n == 0:
            return 0.0
        q = tree.quality(child, self._config.backup)
        if self._config.normalise:
            spread = tree.greatest - tree.least
            q = min(1.0, max(0.0, (q - tree.least) / spread)) if spread > 0 else 0.5
        return q * n / (n + self._config.virtual_loss * self._frontier.in_flight[child])

    def _priors(self, siblings: list[int]) -> dict[int, float]:
        """P: mean token probability of each sibling, normalised to sum to 1.

        The mean log-prob is used, so that a long action is not held against its length. An
        action without tokens (a reflection) gets the mean weight of the others.
        """
        weights = {}
        for child in siblings:
            tokens = self._tree.nodes[child].tokens
            if tokens:
                weights[child] = exp(sum(t.logprob for t in tokens) / len(tokens))
        typical = sum(weights.values()) / len(weights) if weights else 1.0
        for child in siblings:
            weights.setdefault(child, typical)
        total = sum(weights.values())
        return {c: w / total if total else 1.0 / len(siblings) for c, w in weights.items()}
