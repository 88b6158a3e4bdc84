"""Which nodes may be sampled now, and how many branches are out.

A node is open while fewer continuations than its limit have been drawn at it. The counts
follow from the tree's records (`catch_up`) and from the branches in flight, which are
never part of the tree.
"""

from __future__ import annotations

from marco_search.search.branches import Finish, Reflect, without_room
from marco_search.search.config import Action, Reflection, SearchConfig
from marco_search.search.records import ROOT, Node, Rollout
from marco_search.search.tree import Tree


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
        self._children: dict[int, set[Action]] = {}  # actions of a node's children
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
        self._reflections.append(reflections + (node.action is Action.REFLECTION))
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

    def launch(self, node_id: int, reflect: Reflect) -> None:
        """Note a branch in flight from this node."""
        if reflect is Reflect.FIRST:
            self._reflecting.add(node_id)
        self._flight(node_id, +1)

    def land(self, node_id: int, reflect: Reflect) -> None:
        """Take a branch in flight back."""
        if reflect is Reflect.FIRST:
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

    def reflection_for(self, node_id: int) -> Reflect:
        """How the next branch from this node reflects."""
        rule = self._config.reflection
        if rule is Reflection.ALWAYS and self._may_reflect(node_id):
            return Reflect.NO if self._tree.thought_closed(node_id) else Reflect.AT_END
        if rule is Reflection.BRANCH and self._may_branch_off(node_id):
            due = Action.REFLECTION not in self._children[node_id]
            return Reflect.FIRST if due and node_id not in self._reflecting else Reflect.NO
        return Reflect.NO

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
        whole = config.action is Action.WHOLE
        branch = config.reflection is Reflection.BRANCH
        limit = config.width
        if node_id == ROOT and whole and not (branch and config.reflection_width):
            # Reflections need a share of the rollouts where only the root is sampled.
            limit = (config.rollouts + 1) // 2 if branch else config.rollouts
        elif node_id == ROOT:
            limit = max(config.root_width, 1 + int(config.widening * self._tree.visits[ROOT]))
        elif node.action is Action.ANSWER and config.reflection is Reflection.ALWAYS:
            # A closing that had to give way to a reflection stays closed.
            limit = config.width if self._reflections[node_id] else 0
        elif Action.ANSWER in children and children <= {Action.ANSWER, Action.REFLECTION}:
            limit = config.answer_width
        elif node.action is Action.REFLECTION and config.reflection_width is not None:
            limit = config.reflection_width
        elif whole:
            limit = 1 if node.action is Action.REFLECTION else 0
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
