"""The search tree: its records, and the statistics that follow from them.

Nodes and rollouts are only ever added, as in the audit trail. Visit counts and value sums
are derived, so a tree restored from its records is the same tree (`Tree.restore`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from marco_search.search.actions import Action
from marco_search.search.branches import Finish, Part, ReflectionPlacement, Token
from marco_search.search.rewards import TokenScores, token_scores

ROOT = 0
"""Id of the root node, whose text is empty: the prompt stands before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One action on the way from the prompt to an answer. Ids count up from 0, the root."""

    node_id: int
    parent_id: int | None  #: None for the root only
    depth: int  #: edges from the root
    round: int  #: the round that added it; 0 for the root
    action: str  #: a name of `Action` or in `ACTIONS`
    text: str = ""
    tokens: tuple[Token, ...] = ()  #: none for the root and for a reflection
    confidences: tuple[float, ...] = ()  #: c_i of each token
    terminal: bool = False  #: the end of the output or of the sequence was generated


@dataclass(frozen=True, slots=True)
class Child:
    """A child that is not there yet: where a branch starts, and how."""

    node_id: int  #: what it is a child of
    forced: int | None = None  #: the candidate to begin with; None: the model chooses
    reflect: ReflectionPlacement = ReflectionPlacement.NO


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One branch from the node it was forked from to where it ended."""

    rollout_id: int  #: the branch's id
    round: int
    start_id: int  #: the node whose prefix was forked
    path: tuple[int, ...]  #: root first; its last node is the leaf. Only (root..start) if failed
    seed: int
    reflect: ReflectionPlacement
    finish: Finish
    confidence: float  #: mean c_i of the tokens generated in this rollout
    path_confidence: float  #: mean c_i of the path's generated tokens since its last reflection
    value: float  #: what was backed up; 0.0 without an answer
    answer: str | None  #: key of the extracted answer
    generated_tokens: int
    prompt_tokens: int
    cached_tokens: int
    seconds: float
    error: str | None = None  #: why it failed, or why it has no scores
    scores: tuple[float, ...] | None = None  #: what an external reward was computed from
    #: Id of the candidate that it was made to begin with, its first token; None: none
    forced: int | None = None

    @property
    def leaf_id(self) -> int:
        """The node the rollout ended at."""
        return self.path[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one round added to the tree; the unit that the trail commits."""

    number: int  #: counts up from 1
    nodes: tuple[Node, ...]
    rollouts: tuple[Rollout, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortfalls:
    """How many rollouts did not come to what they should; each counts once."""

    failed: int = 0  #: the runtime gave no text
    cut_off: int = 0  #: out of tokens before the turn ended
    cut_off_at: int = 0  #: tokens of the longest of those
    untagged: int = 0  #: the turn ended, its thought never did (`TurnFormat.end_of_thought`)
    unanswered: int = 0  #: the turn ended, no answer can be read in it
    unscored: int = 0  #: the reward model or the verifier failed on its answer
    rejected: int = 0  #: the verifier (or the reward model, of one score) gave its answer 0

    @classmethod
    def of(cls, rollouts: Iterable[Rollout], action_of: Callable[[int], str]) -> Shortfalls:
        """Those of these rollouts; `action_of` gives the action of a node."""
        found = [(shortfall(r, action_of(r.leaf_id)), r) for r in rollouts]
        count = Counter(name for name, _ in found if name)
        longest = max((r.generated_tokens for name, r in found if name == "cut_off"), default=0)
        return cls(**count, cut_off_at=longest)


def shortfall(rollout: Rollout, leaf_action: str) -> str | None:
    """Which of the counts of `Shortfalls` a rollout adds to, if any."""
    if rollout.finish is not Finish.STOP:
        return "failed" if rollout.finish is Finish.FAILED else "cut_off"
    if rollout.answer is not None and rollout.error is not None:
        return "unscored"
    if rollout.answer is not None and rollout.scores == (0.0,):
        return "rejected"
    if leaf_action != Action.ANSWER:
        return "untagged"
    return "unanswered" if rollout.answer is None else None


class Tree:
    """Nodes by id, with visit counts and values kept up to date as rollouts are recorded."""

    def __init__(self) -> None:
        self.texts: dict[int, str] = {}  # of candidates by token id, as far as they are known
        self.nodes: list[Node] = []
        self.rollouts: list[Rollout] = []
        self.children: list[list[int]] = []
        self.visits: list[int] = []
        self.value_sum: list[float] = []
        # Sum of c_i and number of the tokens since the path's last reflection, or from the root.
        self._since_reflection: list[tuple[float, int]] = []
        self.least, self.greatest = 1.0, 0.0  # values of rollouts with an answer
        self._scores: dict[int, TokenScores] = {}  # by node, once a reward has asked for them
        self._by_content: dict[tuple[object, ...], int] = {}
        self.add(Node(node_id=ROOT, parent_id=None, depth=0, round=0, action=Action.ROOT))

    # -- growing ------------------------------------------------------------------

    @classmethod
    def restore(
        cls,
        nodes: Iterable[Node],
        rollouts: Iterable[Rollout],
        texts: Mapping[int, str] | None = None,
    ) -> Tree:
        """The tree that `nodes` and `rollouts` (each in id order) make up.

        Without the `texts` of its candidates none of them can be forked at.
        """
        tree = cls()
        tree.texts.update(texts or {})
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
        """Append a node. Raises ValueError unless its id is the next and its parent is here."""
        i, parent = node.node_id, node.parent_id
        if i != len(self.nodes) or (parent is None) != (i == ROOT) or (parent or 0) > i:
            raise ValueError(f"node {i} below {parent} does not follow {len(self.nodes)} nodes")
        self.nodes.append(node)
        self.children.append([])
        self.visits.append(0)
        self.value_sum.append(0.0)
        if parent is not None:
            self.children[parent].append(i)
        restarts = parent is None or node.action == Action.REFLECTION
        confidence, tokens = (0.0, 0) if restarts else self._since_reflection[parent or ROOT]
        self._since_reflection.append(
            (confidence + sum(node.confidences), tokens + len(node.tokens))
        )
        self._by_content.setdefault(_content(node), i)

    def record(self, rollout: Rollout) -> None:
        """Back the rollout's value up its path (each node: visit count + 1, value sum + v)."""
        self.rollouts.append(rollout)
        if rollout.finish is Finish.FAILED:
            return
        for node_id in rollout.path:
            self.visits[node_id] += 1
            self.value_sum[node_id] += rollout.value
        if rollout.answer is not None:
            self.least = min(self.least, rollout.value)
            self.greatest = max(self.greatest, rollout.value)

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

    def parts(self, node_id: int) -> tuple[Part, ...]:
        """The same as `text`, in parts: ids where the model generated it."""
        nodes = (self.nodes[i] for i in self.path(node_id))
        return tuple(tuple(t.id for t in n.tokens) or n.text for n in nodes if n.tokens or n.text)

    def candidate(self, node_id: int, token_id: int) -> Token:
        """A candidate for the token after this node, as a token of its own.

        Raises StopIteration if it was none of them.
        """
        after = next(n for i in self.children[node_id] if (n := self.nodes[i]).tokens)
        top = after.tokens[0].top
        logprob = next(p for i, p in top if i == token_id)
        return Token(token_id, self.texts[token_id], logprob, top)

    def token_scores(self, node_id: int) -> TokenScores:
        """The scores of the node's tokens, as rewards see them."""
        if node_id not in self._scores:
            node = self.nodes[node_id]
            self._scores[node_id] = token_scores(node.tokens, node.confidences)
        return self._scores[node_id]

    def thought_closed(self, node_id: int) -> bool:
        """True if the thought has ended at or above this node."""
        return any(self.nodes[i].action == Action.ANSWER for i in self.up(node_id))

    def mean_value(self, node_id: int) -> float:
        """Mean backed-up value; 0.0 before the first visit."""
        n = self.visits[node_id]
        return self.value_sum[node_id] / n if n else 0.0

    def path_confidence(self, node_id: int) -> float:
        """Mean c_i of the generated tokens from the root to this node.

        After a reflection it starts over: what was taken back says nothing about the answer.
        """
        confidence, tokens = self._since_reflection[node_id]
        return confidence / tokens if tokens else 0.0


def _content(node: Node) -> tuple[object, ...]:
    """What makes two siblings the same action: equal token ids (text where put in by us)."""
    return (
        node.parent_id,
        node.action,
        node.terminal,
        tuple(t.id for t in node.tokens) or node.text,
    )
