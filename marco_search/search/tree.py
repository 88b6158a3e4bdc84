"""The search tree: frozen nodes and rollouts, and the statistics that follow from them.

Nodes and rollouts are only ever added, as in the audit trail. Visit counts, value sums and
what is still open to sampling are derived, so a tree restored from its records is the same
tree (`Tree.restore`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from marco_search.search.branches import Finish, Reflect, Token
from marco_search.search.config import Action, Reflection, SearchConfig

ROOT = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One action on the way from the prompt to an answer. Ids count up from 0, the root."""

    node_id: int
    parent_id: int | None  # None for the root only
    depth: int  # edges from the root
    round: int  # the round that added it; 0 for the root
    action: Action
    text: str
    tokens: tuple[Token, ...]  # none for the root and for a reflection
    confidences: tuple[float, ...]  # c_i of each token
    terminal: bool  # the end of the output or of the sequence was generated


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One branch from the node it was forked from to where it ended."""

    rollout_id: int  # the branch's id
    round: int
    start_id: int  # the node whose prefix was forked
    path: tuple[int, ...]  # root first; its last node is the leaf. Only (root..start) if failed
    seed: int
    reflect: Reflect
    finish: Finish
    confidence: float  # mean c_i of the tokens generated in this rollout
    path_confidence: float  # mean c_i of all generated tokens on the path
    value: float  # what was backed up; 0.0 without an answer
    answer: str | None  # key of the extracted answer
    generated_tokens: int
    prompt_tokens: int
    cached_tokens: int
    seconds: float
    error: str | None = None

    @property
    def leaf_id(self) -> int:
        """The node the rollout ended at."""
        return self.path[-1]


class Tree:
    """Nodes by id, with visit counts and values kept up to date as rollouts are recorded."""

    def __init__(self, config: SearchConfig) -> None:
        self._config = config
        self.nodes: list[Node] = []
        self.rollouts: list[Rollout] = []
        self.children: list[list[int]] = []
        self.visits: list[int] = []
        self.value_sum: list[float] = []
        self.in_flight: list[int] = []  # branches in flight at or below the node
        self._sampled: list[int] = []  # continuations drawn at exactly this node
        self._launched: list[int] = []  # of those, still in flight
        self._reflecting: set[int] = set()  # nodes with a reflection in flight
        self._thought_ends: set[int] = set()  # nodes with an ANSWER child
        self._reflected: set[int] = set()  # nodes with a REFLECTION child
        self._continued: set[int] = set()  # nodes with a child that goes on thinking
        self._reflections: list[int] = []  # reflections on the path to the node
        self._is_open: list[bool] = []
        self._open_below: list[int] = []  # open nodes at or below the node
        self._confidence_sum: list[float] = []  # over generated tokens from the root
        self._token_count: list[int] = []
        self.least, self.greatest = 1.0, 0.0  # values of rollouts with an answer
        self._by_content: dict[tuple[object, ...], int] = {}
        self.add(
            Node(
                node_id=ROOT, parent_id=None, depth=0, round=0, action=Action.ROOT,
                text="", tokens=(), confidences=(), terminal=False,
            )
        )  # fmt: skip

    # -- growing ------------------------------------------------------------------

    @classmethod
    def restore(
        cls, config: SearchConfig, nodes: Iterable[Node], rollouts: Iterable[Rollout]
    ) -> Tree:
        """The tree that `nodes` (in id order, root first) and `rollouts` (in id order) make up."""
        tree = cls(config)
        for node in nodes:
            if node.node_id != ROOT:
                tree.add(node)
        for rollout in rollouts:
            tree.record(rollout)
        return tree

    def find(self, node: Node) -> int | None:
        """Id of a node with the same parent and content, if there is one."""
        return self._by_content.get(_content(node))

    def add(self, node: Node) -> None:
        """Append a node; its id is the next one and its parent is in the tree."""
        i = node.node_id
        if i != len(self.nodes):
            raise AssertionError(f"node {i} added out of order, {len(self.nodes)} expected")
        parent = node.parent_id
        self.nodes.append(node)
        self.children.append([])
        self.visits.append(0)
        self.value_sum.append(0.0)
        for counts in (self.in_flight, self._sampled, self._launched):
            counts.append(0)
        self._open_below.append(0)
        self._is_open.append(False)
        above = (0.0, 0, 0)
        if parent is not None:
            self.children[parent].append(i)
            above = (
                self._confidence_sum[parent],
                self._token_count[parent],
                self._reflections[parent],
            )
            if node.action is Action.ANSWER:
                self._thought_ends.add(parent)
            elif node.action is Action.REFLECTION:
                self._reflected.add(parent)
            else:
                self._continued.add(parent)
        self._confidence_sum.append(above[0] + sum(node.confidences))
        self._token_count.append(above[1] + len(node.tokens))
        self._reflections.append(above[2] + (node.action is Action.REFLECTION))
        self._by_content.setdefault(_content(node), i)
        self._refresh(i)
        if parent is not None:
            self._refresh(parent)

    def record(self, rollout: Rollout) -> None:
        """Back the rollout's value up its path (each node: visit count + 1, value sum + v)."""
        self.rollouts.append(rollout)
        if rollout.finish is Finish.FAILED:
            return
        start = rollout.path.index(rollout.start_id)
        for node_id in rollout.path:
            self.visits[node_id] += 1
            self.value_sum[node_id] += rollout.value
        for node_id in rollout.path[start:-1]:
            self._sampled[node_id] += 1
            self._refresh(node_id)
        if rollout.answer is not None:
            self.least = min(self.least, rollout.value)
            self.greatest = max(self.greatest, rollout.value)

    # -- branches in flight ---------------------------------------------------------

    def launch(self, node_id: int, reflect: Reflect) -> None:
        """Note a branch in flight from this node (virtual loss on its whole path)."""
        self._flight(node_id, reflect, +1)

    def land(self, node_id: int, reflect: Reflect) -> None:
        """Take a branch in flight back."""
        self._flight(node_id, reflect, -1)

    def _flight(self, node_id: int, reflect: Reflect, by: int) -> None:
        self._launched[node_id] += by
        if reflect is Reflect.FIRST:
            (self._reflecting.add if by > 0 else self._reflecting.discard)(node_id)
        for above in self.up(node_id):
            self.in_flight[above] += by
        self._refresh(node_id)

    # -- what may be sampled ----------------------------------------------------------

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

    def reflection_for(self, node_id: int) -> Reflect:
        """How the next branch from this node reflects."""
        rule = self._config.reflection
        if self._reflections[node_id] >= self._config.max_reflections:
            return Reflect.NO
        if rule is Reflection.ALWAYS:
            closed = self.thought_closed(node_id)
            return Reflect.NO if closed else Reflect.AT_END
        if rule is Reflection.BRANCH and self._reflection_due(node_id):
            return Reflect.FIRST
        return Reflect.NO

    def thought_closed(self, node_id: int) -> bool:
        """True if the thought has ended at or above this node."""
        return any(self.nodes[i].action is Action.ANSWER for i in self.up(node_id))

    def _reflection_due(self, node_id: int) -> bool:
        return (
            node_id in self._thought_ends
            and node_id not in self._reflected
            and node_id not in self._reflecting
            and self._reflections[node_id] < self._config.max_reflections
        )

    def _limit(self, node_id: int) -> int:
        """Branches that may ever be sampled at this node."""
        config, node = self._config, self.nodes[node_id]
        if node.terminal:
            return 0
        whole = config.action is Action.WHOLE
        branching_reflection = config.reflection is Reflection.BRANCH
        limit = config.width
        if node_id == ROOT and whole:
            # Reflections need a share of the rollouts where only the root is sampled.
            limit = (config.rollouts + 1) // 2 if branching_reflection else config.rollouts
        elif node_id == ROOT:
            limit = config.root_width
        elif node.action is Action.ANSWER and config.reflection is Reflection.ALWAYS:
            # A closing that had to give way to a reflection stays closed.
            limit = config.width if self._reflections[node_id] else 0
        elif node_id in self._thought_ends and node_id not in self._continued:
            limit = config.answer_width
        elif whole:
            limit = 1 if node.action is Action.REFLECTION else 0
        may_reflect = (
            branching_reflection
            and node_id in self._thought_ends
            and self._reflections[node_id] < config.max_reflections
        )
        return limit + may_reflect

    def _refresh(self, node_id: int) -> None:
        """Bring the open counts of this node and those above it up to date."""
        now = self.room(node_id) > 0
        if now == self._is_open[node_id]:
            return
        self._is_open[node_id] = now
        for above in self.up(node_id):
            self._open_below[above] += 1 if now else -1

    # -- reading --------------------------------------------------------------------

    def up(self, node_id: int) -> Iterator[int]:
        """The ids from this node to the root."""
        at: int | None = node_id
        while at is not None:
            yield at
            at = self.nodes[at].parent_id

    def path(self, node_id: int) -> tuple[int, ...]:
        """The ids from the root to this node."""
        return tuple(self.up(node_id))[::-1]

    def text(self, node_id: int) -> str:
        """All text from the root to this node, without the prompt."""
        return "".join(self.nodes[i].text for i in self.path(node_id))

    def mean_value(self, node_id: int) -> float:
        """Q: mean backed-up value; 0.0 before the first visit."""
        n = self.visits[node_id]
        return self.value_sum[node_id] / n if n else 0.0

    def path_confidence(self, node_id: int) -> float:
        """Mean c_i of all generated tokens from the root to this node."""
        n = self._token_count[node_id]
        return self._confidence_sum[node_id] / n if n else 0.0


def _content(node: Node) -> tuple[object, ...]:
    """What makes two siblings the same action: equal token ids (text where put in by us)."""
    return (
        node.parent_id,
        node.action,
        node.terminal,
        tuple(t.id for t in node.tokens) or node.text,
    )
