"""Which nodes may be sampled, and which child to follow on the way down.

A node is open while fewer continuations than its limit have been drawn at it. The counts
follow from the tree's records (`Frontier.catch_up`) and, while a round is put together, from
the branches in it so far, which are in flight and never part of the tree.

The rule is UCT or PUCT, with branches in flight counted. With n visits and o branches in flight
at a child, N and O at its parent, and Q the child's mean value:

    Q'   = Q * n / (n + o)                      (a branch in flight counts as a lost visit)
    UCT  = Q' + c * sqrt(2 ln(N + O) / (n + o))
    PUCT = Q' + c * P * sqrt(N + O) / (1 + n + o),  P = child's prior among its siblings

Values of a confident model lie close together (.96 to .99), so Q is first scaled to [0, 1] by
the least and greatest value seen in the tree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from math import exp, inf, log, sqrt

from marco_search.search.actions import Action
from marco_search.search.branches import Finish, ReflectionPlacement, without_room
from marco_search.search.config import ReflectionPolicy, SearchConfig, Selection
from marco_search.search.tree import ROOT, Child, Node, Rollout, Tree


class Frontier:
    """Open nodes of a tree, kept up to date in time proportional to what was added."""

    def __init__(self, tree: Tree, config: SearchConfig) -> None:
        self.tree = tree
        self.config = config
        self.in_flight: list[int] = []  # branches in flight at or below the node
        self.is_open: list[bool] = []  # whether a branch may be forked from the node now
        self.open_below: list[int] = []  # open nodes at or below the node
        self.drawn: list[int] = []  # continuations drawn at exactly this node
        self._reflections: list[int] = []  # reflections on the path to the node
        self._reflecting: set[int] = set()  # nodes with a reflection in flight
        self._full: set[int] = set()  # nodes whose text leaves the model no room
        self._children: list[set[str]] = []  # actions of the node's children
        self._rollouts_seen = 0
        self.catch_up()

    # -- following the tree -----------------------------------------------------------

    def catch_up(self) -> None:
        """Take in the nodes and rollouts that were added to the tree since the last call."""
        for node in self.tree.nodes[len(self.is_open) :]:
            self._added(node)
        for rollout in self.tree.rollouts[self._rollouts_seen :]:
            self._recorded(rollout)
        self._rollouts_seen = len(self.tree.rollouts)

    def _added(self, node: Node) -> None:
        parent = node.parent_id
        for counts in (self.in_flight, self.open_below, self.drawn):
            counts.append(0)
        self.is_open.append(False)
        self._children.append(set())
        reflections = 0 if parent is None else self._reflections[parent]
        self._reflections.append(reflections + (node.action == Action.REFLECTION))
        self._refresh(node.node_id)
        if parent is not None:
            self._children[parent].add(node.action)
            self._refresh(parent)

    def _recorded(self, rollout: Rollout) -> None:
        if rollout.finish is Finish.FAILED:
            if without_room(rollout.error):
                self._full.add(rollout.start_id)
                self._refresh(rollout.start_id)
            return
        start = rollout.path.index(rollout.start_id)
        # Where the turn ended without another token, at its leaf too.
        end = None if rollout.finish is Finish.STOP else -1
        for node_id in rollout.path[start:end]:
            self.drawn[node_id] += 1
            self._refresh(node_id)
        self._refresh(ROOT)  # its limit follows its visits

    # -- what may be sampled --------------------------------------------------------------

    def room(self, node_id: int) -> int:
        """How many more branches may be forked from this node now."""
        return max(0, self._limit(node_id) - self.drawn[node_id])

    def reflection_for(self, node_id: int) -> ReflectionPlacement:
        """How the next branch from this node reflects."""
        rule = self.config.reflection
        if rule is ReflectionPolicy.ALWAYS and self._may_reflect(node_id):
            if not self.tree.thought_closed(node_id):
                return ReflectionPlacement.AT_END
        elif rule is ReflectionPolicy.BRANCH and self._may_branch_off(node_id):
            done = Action.REFLECTION in self._children[node_id]
            if not done and node_id not in self._reflecting:
                return ReflectionPlacement.FIRST
        return ReflectionPlacement.NO

    def _may_reflect(self, node_id: int) -> bool:
        return self._reflections[node_id] < self.config.max_reflections

    def _may_branch_off(self, node_id: int) -> bool:
        """True where a thought has ended and a reflection may stand beside its closing."""
        ends = Action.ANSWER in self._children[node_id]
        return ends and self._may_reflect(node_id)

    def _limit(self, node_id: int) -> int:
        """Branches that may ever be sampled at this node."""
        config, node = self.config, self.tree.nodes[node_id]
        if node.terminal or node_id in self._full:
            return 0
        children = self._children[node_id]
        whole = not config.action_kind.branches_inside
        branch = config.reflection is ReflectionPolicy.BRANCH
        limit = config.width
        if node_id == ROOT and whole:
            # Reflections need a share of the rollouts where only the root is sampled.
            limit = (config.rollouts + 1) // 2 if branch else config.rollouts
        elif node_id == ROOT:
            # However small the budget, some of it is left to fork below the root with.
            half = (config.root_width + 1) // 2
            limit = min(config.root_width, half + self.tree.visits[ROOT] // 2)
        elif node.action == Action.ANSWER and config.reflection is ReflectionPolicy.ALWAYS:
            # A closing that had to give way to a reflection stays closed.
            limit = config.width if self._reflections[node_id] else 0
        elif Action.ANSWER in children and children <= {Action.ANSWER, Action.REFLECTION}:
            limit = config.answer_width
        elif whole:
            limit = 1 if node.action == Action.REFLECTION else 0
        return limit + (branch and self._may_branch_off(node_id))

    def _refresh(self, node_id: int) -> None:
        """Bring the open counts of this node and those above it up to date."""
        now = self.room(node_id) > 0
        if now != self.is_open[node_id]:
            self.is_open[node_id] = now
            self._count(self.open_below, node_id, +1 if now else -1)

    def _count(self, counts: list[int], node_id: int, by: int) -> None:
        for above in self.tree.up(node_id):
            counts[above] += by

    # -- the way down ---------------------------------------------------------------------

    def select(self, count: int) -> list[Child]:
        """The children of the next round: at most `count`, fewer if nothing more is open."""
        children = list(islice(self._choose(), count))
        for child in children:
            self._flight(child.node_id, -1)
        self._reflecting.clear()
        return children

    def _choose(self) -> Iterator[Child]:
        """One child after the other, each counted as in flight.

        Once all that was open is sampled, fresh rollouts from the root use the budget.
        """
        config, chosen = self.config, False
        while (node_id := self._descend()) is not None or not chosen:
            if node_id is None:
                node_id, forks = ROOT, config.root_width
            else:
                # The root's samples have nothing to wait for, others go few at a time.
                most = config.parallel if node_id == ROOT else config.branching
                forks = min(most, self.room(node_id))
            for _ in range(forks):
                chosen, reflect = True, self.reflection_for(node_id)
                if reflect is ReflectionPlacement.FIRST:
                    self._reflecting.add(node_id)
                self._flight(node_id, +1)
                yield Child(node_id, reflect=reflect)

    def _flight(self, node_id: int, by: int) -> None:
        self.drawn[node_id] += by
        self._count(self.in_flight, node_id, by)
        self._refresh(node_id)

    def _descend(self) -> int | None:
        """The open node that the rule leads to from the root; None if none is open."""
        if not self.open_below[ROOT]:
            return None
        at = ROOT
        while not self.is_open[at]:
            candidates = [c for c in self.tree.children[at] if self.open_below[c]]
            scores = RULES[self.config.selection](self, at, candidates)
            # Ties go to the child that was added first.
            at = candidates[scores.index(max(scores))]
        return at

    def count(self, node_id: int) -> int:
        """n + o: visits and branches in flight."""
        return self.tree.visits[node_id] + self.in_flight[node_id]

    def quality(self, node_id: int) -> float:
        """Q', scaled, after virtual loss."""
        tree, n = self.tree, self.tree.visits[node_id]
        if n == 0:
            return 0.0
        spread, q = tree.greatest - tree.least, tree.mean_value(node_id)
        q = min(1.0, max(0.0, (q - tree.least) / spread)) if spread > 0 else 0.5
        return q * n / (n + self.in_flight[node_id])

    def prior(self, siblings: Sequence[int]) -> dict[int, float]:
        """P: mean token probability of each sibling, normalised to sum to 1.

        The mean log-prob is used, so that a long action is not held against its length. An
        action without tokens (a reflection) gets the mean weight of the others.
        """
        weights = {}
        for child in siblings:
            tokens = self.tree.nodes[child].tokens
            if tokens:
                weights[child] = exp(sum(t.logprob for t in tokens) / len(tokens))
        typical = sum(weights.values()) / len(weights) if weights else 1.0
        for child in siblings:
            weights.setdefault(child, typical)
        total = sum(weights.values())
        return {c: w / total if total else 1.0 / len(siblings) for c, w in weights.items()}


def _uct(frontier: Frontier, parent: int, children: Sequence[int]) -> list[float]:
    c, drawn = frontier.config.exploration, 2.0 * log(max(frontier.count(parent), 1))
    return [
        frontier.quality(i) + c * sqrt(drawn / frontier.count(i)) if frontier.count(i) else inf
        for i in children
    ]


def _puct(frontier: Frontier, parent: int, children: Sequence[int]) -> list[float]:
    c, drawn = frontier.config.exploration, sqrt(frontier.count(parent))
    prior = frontier.prior(frontier.tree.children[parent])
    return [
        frontier.quality(i) + c * (prior[i] * drawn / (1 + frontier.count(i))) for i in children
    ]


RULES: dict[Selection, Callable[[Frontier, int, Sequence[int]], list[float]]] = {
    Selection.UCT: _uct,
    Selection.PUCT: _puct,
}
"""Rule to its function: (frontier, parent, open children) -> a score for each, most wins."""
