"""Which child to follow on the way down: UCT or PUCT, with branches in flight counted.

With n visits and o branches in flight at a child, N and O at its parent, Q the child's
mean value and w the virtual loss:

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
from marco_search.search.tree import ROOT, Tree


def select(tree: Tree, config: SearchConfig) -> int | None:
    """The open node that the rule leads to from the root; None if none is open."""
    at = ROOT
    if not tree.open_below(at):
        return None
    while not tree.is_open(at):
        at = _best_child(tree, config, at)
    return at


def _best_child(tree: Tree, config: SearchConfig, parent: int) -> int:
    candidates = [c for c in tree.children[parent] if tree.open_below(c)]
    if len(candidates) == 1:
        return candidates[0]
    total = tree.visits[parent] + tree.in_flight[parent]
    if config.selection is Selection.PUCT:
        priors = _priors(tree, tree.children[parent])
        scores = [_puct(tree, config, c, total, priors[c]) for c in candidates]
    else:
        scores = [_uct(tree, config, c, total) for c in candidates]
    # Ties go to the child that was added first.
    return candidates[scores.index(max(scores))]


def _uct(tree: Tree, config: SearchConfig, child: int, total: int) -> float:
    n = tree.visits[child] + tree.in_flight[child]
    if n == 0:
        return inf
    return _quality(tree, config, child) + config.exploration * sqrt(2.0 * log(max(total, 1)) / n)


def _puct(tree: Tree, config: SearchConfig, child: int, total: int, prior: float) -> float:
    n = tree.visits[child] + tree.in_flight[child]
    return _quality(tree, config, child) + config.exploration * prior * sqrt(total) / (1 + n)


def _quality(tree: Tree, config: SearchConfig, child: int) -> float:
    """Q', scaled if asked for, after virtual loss."""
    n = tree.visits[child]
    if n == 0:
        return 0.0
    q = tree.mean_value(child)
    if config.normalise:
        spread = tree.greatest - tree.least
        q = min(1.0, max(0.0, (q - tree.least) / spread)) if spread > 0 else 0.5
    return q * n / (n + config.virtual_loss * tree.in_flight[child])


def _priors(tree: Tree, siblings: list[int]) -> dict[int, float]:
    """P: mean token probability of each sibling, normalised to sum to 1.

    The mean log-prob is used, so that a long action is not held against its length. An
    action without tokens (a reflection) gets the mean weight of the others.
    """
    weights = {}
    for child in siblings:
        tokens = tree.nodes[child].tokens
        if tokens:
            weights[child] = exp(sum(t.logprob for t in tokens) / len(tokens))
    typical = sum(weights.values()) / len(weights) if weights else 1.0
    for child in siblings:
        weights.setdefault(child, typical)
    total = sum(weights.values())
    return {c: w / total if total else 1.0 / len(siblings) for c, w in weights.items()}
