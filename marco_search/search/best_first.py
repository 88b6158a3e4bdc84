"""The order in which `tree` and `adaptive` try the possible children of a tree: best first.

One queue holds three kinds of children, each with a prior and the uncertainty of the path that
exists already. The product is its score, roughly the probability that it finds another answer
that the model would believe:

- a fork: a candidate that was passed over. Prior: its share among the best candidates at its
  position. Uncertainty: FLOOR + 1 - the product of c_i from that position to the end of the line.
- a reflection at the end of the first thought. Prior 1, uncertainty 1: it is tried first.
- a fresh thought at the root. Prior FRESH / (1 + their number so far), uncertainty 1.

A child is tried once. The queue is derived from the tree's records (`BestFirst.catch_up`), without
branches in flight. On forking where a model is unsure: arXiv 2503.21961 and 2604.00018.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple

from marco_search.search.actions import LEAST_SHARE, Action, passed_over
from marco_search.search.branches import Finish, ReflectionPlacement, Token
from marco_search.search.config import ReflectionPolicy, SearchConfig
from marco_search.search.rewards import unsure
from marco_search.search.tree import ROOT, Child, Node, Rollout, Tree

FLOOR = 0.2
"""Minimum uncertainty of a fork, where the existing path looks sure. From a development split."""
FRESH = 0.03
"""Prior of the first fresh thought. Ten times as much made no difference (docs/search.md)."""

_NO_TEXT = re.compile(
    r"\ufffd|<[|\uff5c].*[|\uff5c]>|</?s>|<(?:[be]os|pad|unk|(?:start|end)_of_turn)>|\[/?INST\]"
)
"""Can't be inserted into a text: part of a character, or a token that ends or begins a turn."""


class _Fork(NamedTuple):
    """An entry of the queue, ordered by highest score, then by age."""

    score: float  #: negated
    order: int
    node_id: int
    token_id: int
    text: bytes  #: digest of the path's text with the candidate


def _hash_of(text: str) -> blake2b:
    """Texts are identified by a digest: a queue of whole paths would take too much memory."""
    return blake2b(text.encode(), digest_size=16)


def _digest(before: blake2b, text: str) -> bytes:
    """The digest of a text extended by this one."""
    whole = before.copy()
    whole.update(text.encode())
    return whole.digest()


def _tokens(nodes: Sequence[Node], at: int) -> Iterator[tuple[Token, float]]:
    """The tokens of these nodes with their c_i, from the one at `at` up to a reflection."""
    for i in range(at, len(nodes)):
        if not nodes[i].tokens:
            return
        yield from zip(nodes[i].tokens, nodes[i].confidences, strict=True)


class BestFirst:
    """The children that may be tried, kept up to date in time proportional to what was added."""

    def __init__(self, tree: Tree, config: SearchConfig) -> None:
        self.tree = tree
        self.config = config
        self._forks: list[_Fork] = []  # a heap
        self._order = 0
        self._tried: set[bytes] = set()  # `_Fork.text` of those that were forced
        self._closed: int | None = None  # the node at which the first thought closed
        self._reflected = False
        self._fresh = 0  # thoughts from the root so far
        self._newest = ROOT  # the last node that was queued from
        self._rollouts_seen = 0
        self.catch_up()

    # -- following the tree -----------------------------------------------------------

    def catch_up(self) -> None:
        """Process the nodes and rollouts added to the tree since the last call."""
        for rollout in self.tree.rollouts[self._rollouts_seen :]:
            self._recorded(rollout)
        self._rollouts_seen = len(self.tree.rollouts)

    def _recorded(self, rollout: Rollout) -> None:
        start = rollout.path.index(rollout.start_id)
        if rollout.forced is not None:
            candidate = self.tree.texts.get(rollout.forced, "")
            self._tried.add(_digest(_hash_of(self.tree.text(rollout.start_id)), candidate))
        else:
            self._began(rollout.reflect)
        if rollout.finish is Finish.FAILED:
            return
        own = rollout.path[start + 1 :]
        if self._closed is None and not rollout.rollout_id:
            answers = (i for i in own if self.tree.nodes[i].action == Action.ANSWER)
            answer = next(answers, None)
            self._closed = None if answer is None else self.tree.nodes[answer].parent_id
        # A fork's candidate counts as generated, followed by one more token.
        if self.config.action == Action.SPAN and self.config.max_new_tokens > 1:
            self._add_forks([i for i in own if i > self._newest])
            self._newest = max(self._newest, *rollout.path)

    def _began(self, reflect: ReflectionPlacement) -> None:
        """Count a reflection or a fresh thought."""
        if reflect is ReflectionPlacement.FIRST:
            self._reflected = True
        else:
            self._fresh += 1

    def _add_forks(self, own: list[int]) -> None:
        """Queue the candidates passed over where these nodes begin, each below the one before."""
        nodes = [self.tree.nodes[i] for i in own]
        before = _hash_of(self.tree.text(nodes[0].parent_id or ROOT) if nodes else "")
        for at, node in enumerate(nodes):
            if node.tokens and not self._has_elder(node):
                doubt = FLOOR + unsure(_tokens(nodes, at))
                for token_id, share in passed_over(node.tokens[0]):
                    self._add_fork(node.parent_id or ROOT, token_id, share, doubt, before)
            before.update(node.text.encode())

    def _add_fork(
        self, node_id: int, token_id: int, share: float, doubt: float, before: blake2b
    ) -> None:
        text = self.tree.texts.get(token_id, "")
        if share >= LEAST_SHARE and text and not _NO_TEXT.search(text):
            self._order += 1
            fork = _Fork(-share * doubt, self._order, node_id, token_id, _digest(before, text))
            heapq.heappush(self._forks, fork)

    def _has_elder(self, node: Node) -> bool:
        """Whether the candidates here are already queued, from a sibling's first token."""
        siblings = self.tree.children[node.parent_id or ROOT]
        return any(i < node.node_id and self.tree.nodes[i].tokens for i in siblings)

    # -- what to try next -----------------------------------------------------------------

    def select(self, count: int) -> list[Child]:
        """The `count` best children not yet tried."""
        before, children, taken = (self._fresh, self._reflected), list[Child](), list[_Fork]()
        while len(children) < count:
            child = self._best()
            children.append(child)
            if child.forced is None:
                self._began(child.reflect)
            else:
                taken.append(heapq.heappop(self._forks))
                self._tried.add(taken[-1].text)
        # They count once they are in the tree.
        self._fresh, self._reflected = before
        for fork in taken:
            heapq.heappush(self._forks, fork)
            self._tried.discard(fork.text)
        return children

    def _best(self) -> Child:
        if not self._fresh:
            return Child(ROOT, reflect=self._placement(ROOT))
        if self._may_reflect():
            return Child(self._closed or ROOT, reflect=ReflectionPlacement.FIRST)
        while self._forks and self._is_tried(self._forks[0]):
            heapq.heappop(self._forks)
        if self._forks and -self._forks[0].score >= FRESH / self._fresh:
            fork = self._forks[0]
            reflect = self._placement(fork.node_id)
            return Child(fork.node_id, fork.token_id, reflect)
        return Child(ROOT, reflect=self._placement(ROOT))

    def _placement(self, node_id: int) -> ReflectionPlacement:
        """Whether a thought that continues from this node has to reflect at its end."""
        if self.config.reflection is not ReflectionPolicy.ALWAYS:
            return ReflectionPlacement.NO
        done = any(self.tree.nodes[i].action == Action.REFLECTION for i in self.tree.up(node_id))
        open_ = not done and not self.tree.thought_closed(node_id)
        return ReflectionPlacement.AT_END if open_ else ReflectionPlacement.NO

    def _may_reflect(self) -> bool:
        reflects = self.config.reflection is ReflectionPolicy.BRANCH
        return reflects and self._closed is not None and not self._reflected

    def _is_tried(self, fork: _Fork) -> bool:
        children = (self.tree.nodes[i].tokens for i in self.tree.children[fork.node_id])
        taken = any(tokens and tokens[0].id == fork.token_id for tokens in children)
        return taken or fork.text in self._tried
