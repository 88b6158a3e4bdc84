"""Which nodes may be sampled, and which child to follow on the way down.

A node is open while fewer continuations than its limit have been drawn at it. The counts
follow from the tree's records (`Frontier.catch_up`) and from the branches in flight, which are
never part of the tree.

The rule is UCT or PUCT, with branches in flight counted. With n visits and o branches in flight
at a child, N and O at its parent, Q the child's value (mean, greatest or both, `backup`) and
w the virtual loss:

    Q'   = Q * n / (n + w * o)                  (a branch in flight counts as w lost visits)
    UCT  = Q' + c * sqrt(2 ln(N + O) / (n + o))
    PUCT = Q' + c * P * sqrt(N + O) / (1 + n + o),  P = child's prior among its siblings

w = 0 leaves Q alone and counts branches in flight as visits only (WU-UCT). Values of a
confident model lie close together (.96 to .99), so Q is first scaled to [0, 1] by the
least and greatest value seen in the tree, unless `normalise` is off.
"""

from __future__ import annotations

from math import exp, inf, log, sqrt

from marco_search.search.actions import Action
from marco_search.search.branches import Finish, ReflectionPlacement, without_room
from marco_search.search.config import ReflectionPolicy, SearchConfig, Selection
from marco_search.search.tree import ROOT, Node, Rollout, Tree


class Frontier:
    """Open nodes of a tree, kept up to date in time proportional to what was added."""

    def __init__(self, tree: Tree, config: SearchConfig) -> None:
        self._tree = tree
        self._config = config
        self.in_flight: list[int] = []  # branches in flight at or below the node
        self._sampled: list[int] = []  # continuations drawn at exactly this node
        self._launched: list[int] = []  # of those, still in flight
        self._is_open: list[bool] = []
        self._open_below: list[int] = []  # open nodes at or below the node
        self._reflections: list[int] = []  # reflections on the path to the node
        self._reflecting: set[int] = set()  # nodes with a reflection in flight
        self._full: set[int] = set()  # nodes whose text leaves the model no room
        self._expanded: set[int] = set()  # first nodes of rollouts
        self._children: dict[int, set[str]] = {}  # actions of a node's children
        self._rollouts_seen = 0
        self.catch_up()

    # -- following the tree -----------------------------------------------------------

    def catch_up(self) -> None:
        """Take in the nodes and rollouts that were added to the tree since the last call."""
        for node in self._tree.nodes[len(self._is_open) :]:
            self._added(node)
        for rollout in self._tree.rollouts[self._rollouts_seen :]:
            self._recorded(rollout)
        self._rollouts_seen = len(self._tree.rollouts)

    def _added(self, node: Node) -> None:
        parent = node.parent_id
        for counts in (self.in_flight, self._sampled, self._launched, self._open_below):
            counts.append(0)
        self._is_open.append(False)
        reflections = 0 if parent is None else self._reflections[parent]
        self._reflections.append(reflections + (node.action == Action.REFLECTION))
        self._refresh(node.node_id)
        if parent is not None:
            self._children.setdefault(parent, set()).add(node.action)
            self._refresh(parent)

    def _recorded(self, rollout: Rollout) -> None:
        if rollout.finish is Finish.FAILED:
            if without_room(rollout.error):
                self._full.add(rollout.start_id)
                self._refresh(rollout.start_id)
            return
        start = rollout.path.index(rollout.start_id)
        self._expanded.update(rollout.path[start + 1 : start + 2])
        for node_id in rollout.path[start:-1]:
            self._sampled[node_id] += 1
            self._refresh(node_id)
        self._refresh(ROOT)  # its limit follows its visits

    # -- branches in flight -------------------------------------------------------------

    def launch(self, node_id: int, reflect: ReflectionPlacement) -> None:
        """Record a branch in flight from this node."""
        if reflect is ReflectionPlacement.FIRST:
            self._reflecting.add(node_id)
        self._flight(node_id, +1)

    def land(self, node_id: int, reflect: ReflectionPlacement) -> None:
        """Take a branch in flight back."""
        if reflect is ReflectionPlacement.FIRST:
            self._reflecting.discard(node_id)
        self._flight(node_id, -1)

    def _flight(self, node_id: int, by: int) -> None:
        self._launched[node_id] += by
        for above in self._tree.up(node_id):
            self.in_flight[above] += by
        self._refresh(node_id)

    # -- what may be sampled --------------------------------------------------------------

    def room(self, node_id: int) -> int:
        """How many more branches may be forked from this node now."""
        free = self._limit(node_id) - self._sampled[node_id] - self._launched[node_id]
        return max(0, free)

    def is_open(self, node_id: int) -> bool:
        """True if a branch may be forked from this node now."""
        return self._is_open[node_id]

    def open_below(self, node_id: int) -> int:
        """Number of open nodes in the subtree of this node, itself included."""
        return self._open_below[node_id]

    def first_at(self, node_id: int) -> bool:
        """True if nothing was drawn here yet."""
        return self._sampled[node_id] + self._launched[node_id] == 0

    def reflection_for(self, node_id: int) -> ReflectionPlacement:
        """How the next branch from this node reflects."""
        rule = self._config.reflection
        if rule is ReflectionPolicy.ALWAYS and self._may_reflect(node_id):
            if not self._tree.thought_closed(node_id):
                return ReflectionPlacement.AT_END
        elif rule is ReflectionPolicy.BRANCH and self._may_branch_off(node_id):
            done = Action.REFLECTION in self._children[node_id]
            if not done and node_id not in self._reflecting:
                return ReflectionPlacement.FIRST
        return ReflectionPlacement.NO

    def _may_reflect(self, node_id: int) -> bool:
        return self._reflections[node_id] < self._config.max_reflections

    def _may_branch_off(self, node_id: int) -> bool:
        """True where a thought has ended and a reflection may stand beside its closing."""
        ends = Action.ANSWER in self._children.get(node_id, ())
        return ends and self._may_reflect(node_id)

    def _limit(self, node_id: int) -> int:
        """Branches that may ever be sampled at this node."""
        config, node = self._config, self._tree.nodes[node_id]
        if node.terminal or node_id in self._full:
            return 0
        children = self._children.get(node_id, set())
        whole = not config.action_kind.branches_inside
        branch = config.reflection is ReflectionPolicy.BRANCH
        limit = config.width
        if node_id == ROOT and whole and not (branch and config.reflection_width):
            # Reflections need a share of the rollouts where only the root is sampled.
            limit = (config.rollouts + 1) // 2 if branch else config.rollouts
        elif node_id == ROOT:
            limit = max(config.root_width, 1 + int(config.widening * self._tree.visits[ROOT]))
        elif node.action == Action.ANSWER and config.reflection is ReflectionPolicy.ALWAYS:
            # A closing that had to give way to a reflection stays closed.
            limit = config.width if self._reflections[node_id] else 0
        elif Action.ANSWER in children and children <= {Action.ANSWER, Action.REFLECTION}:
            limit = config.answer_width
        elif node.action == Action.REFLECTION and config.reflection_width is not None:
            limit = config.reflection_width
        elif whole:
            limit = 1 if node.action == Action.REFLECTION else 0
        elif branch and config.reflect_first and self._may_reflect(node_id):
            limit = 1
        if not config.reuse and node_id != ROOT and node_id not in self._expanded:
            limit = min(limit, 1)  # the rollout that it came with
        return limit + (branch and self._may_branch_off(node_id))

    def _refresh(self, node_id: int) -> None:
        """Bring the open counts of this node and those above it up to date."""
        now = self.room(node_id) > 0
        if now == self._is_open[node_id]:
            return
        self._is_open[node_id] = now
        for above in self._tree.up(node_id):
            self._open_below[above] += 1 if now else -1


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
