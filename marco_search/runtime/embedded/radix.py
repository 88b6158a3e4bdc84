"""The prefix cache: a radix tree over token ids that holds keys and values.

An edge carries a run of tokens with their keys and values, so a prefix that several branches
share is stored once. When the cache is over its budget the leaves that were used least
recently go first.
Used by the decoding thread alone.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from marco_search.runtime.embedded.safetensors import Floats
from marco_search.runtime.embedded.tokenizer import TokenIds

Fetch = Callable[[int, int], tuple[Floats, Floats]]
"""(start, end) -> keys [L, kv, d, end - start] and values [L, kv, end - start, d]."""

_NODE_BYTES = 512  # roughly, the objects of a node
_KEEP_AFTER_EVICTION = 0.9  # of the budget, so that evictions are rare


@dataclass(eq=False, slots=True)
class Node:
    """The tokens of one edge and what the model computed for them."""

    ids: TokenIds
    keys: Floats
    values: Floats
    parent: Node | None
    children: dict[int, Node] = field(default_factory=dict)
    logits: Floats | None = None  # after the last token, where a fork was announced
    used: int = 0

    @property
    def size_bytes(self) -> int:
        """What the node counts for in the budget."""
        extra = 0 if self.logits is None else self.logits.nbytes
        return self.ids.nbytes + self.keys.nbytes + self.values.nbytes + extra + _NODE_BYTES


@dataclass(frozen=True, slots=True)
class Match:
    """The longest cached prefix of a sequence. `node` is the deepest node it touches."""

    length: int
    node: Node
    logits: Floats | None  # after the whole sequence, if all of it matched and they are known


class RadixCache:
    """Keys and values of token prefixes, within `budget_bytes`."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        nothing = np.zeros((0, 0, 0, 0), np.float32)
        self._root = Node(np.zeros(0, np.int32), nothing, nothing, None)
        self._clock = 0
        self.size_bytes = 0

    def match(self, ids: TokenIds) -> Match:
        """The longest cached prefix of `ids`; marks it as just used."""
        node, length, inside = self._descend(ids)
        whole = length == len(ids) and inside == len(node.ids)
        return Match(length, node, node.logits if whole else None)

    def pieces(self, match: Match, length: int) -> Iterator[tuple[int, Floats, Floats]]:
        """(start, keys, values) that cover the first `length` tokens of a match, last first."""
        end, node = match.length, match.node
        inside = end - self._depth(node.parent)
        while node.parent is not None:
            start = end - inside
            count = min(inside, length - start)
            if count > 0:
                yield start, node.keys[..., :count], node.values[:, :, :count]
            end, node = start, node.parent
            inside = len(node.ids)

    def limit(self, budget_bytes: int) -> None:
        """Keep within another budget from now on."""
        self.budget_bytes = budget_bytes
        if self.size_bytes > budget_bytes:
            self._evict(budget_bytes)

    def insert(self, ids: TokenIds, fetch: Fetch, logits: Floats | None = None) -> None:
        """Keep a sequence: `fetch` is asked only for what is not there yet.

        `logits` are those after its last token. May evict, even what was just put in.
        """
        node, length, inside = self._descend(ids)
        if inside < len(node.ids) and (length < len(ids) or logits is not None):
            node = self._split(node, inside)
        if length < len(ids):
            keys, values = fetch(length, len(ids))
            child = Node(np.array(ids[length:], np.int32), keys, values, node, used=self._clock)
            node.children[int(ids[length])] = child
            self.size_bytes += child.size_bytes
            node = child
        if logits is not None and node.logits is None and node.parent is not None:
            self.size_bytes -= node.size_bytes
            node.logits = logits.copy()
            self.size_bytes += node.size_bytes
        if self.size_bytes > self.budget_bytes:
            self._evict(int(self.budget_bytes * _KEEP_AFTER_EVICTION))

    def _descend(self, ids: TokenIds) -> tuple[Node, int, int]:
        """(deepest node touched, tokens matched, tokens matched within that node)."""
        self._clock += 1
        node, length, inside = self._root, 0, 0
        while inside == len(node.ids) and length < len(ids):
            child = node.children.get(int(ids[length]))
            if child is None:
                break
            child.used = self._clock
            rest = ids[length : length + len(child.ids)]
            differs = np.flatnonzero(rest != child.ids[: len(rest)])
            inside = int(differs[0]) if differs.size else len(rest)
            length, node = length + inside, child
        return node, length, inside

    def _split(self, node: Node, at: int) -> Node:
        """Cut a node after `at` tokens; the lower part stays itself. Returns the upper."""
        parent = node.parent
        assert parent is not None, "the root has no tokens to cut"
        self.size_bytes -= node.size_bytes
        keys, values = node.keys, node.values
        upper = Node(node.ids[:at].copy(), keys[..., :at].copy(), values[:, :, :at].copy(), parent)
        upper.used = node.used
        node.ids, node.parent = node.ids[at:].copy(), upper
        node.keys, node.values = keys[..., at:].copy(), values[:, :, at:].copy()
        upper.children[int(node.ids[0])] = node
        parent.children[int(upper.ids[0])] = upper
        self.size_bytes += upper.size_bytes + node.size_bytes
        return upper

    def _evict(self, target_bytes: int) -> None:
        heap = [(n.used, id(n), n) for n in self._nodes() if not n.children]
        heapq.heapify(heap)
        while heap and self.size_bytes > target_bytes:
            _, _, node = heapq.heappop(heap)
            parent = node.parent
            assert parent is not None, "the root is never a candidate"
            del parent.children[int(node.ids[0])]
            self.size_bytes -= node.size_bytes
            if parent is not self._root and not parent.children:
                heapq.heappush(heap, (parent.used, id(parent), parent))

    def _nodes(self) -> Iterator[Node]:
        stack = list(self._root.children.values())
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    @staticmethod
    def _depth(node: Node | None) -> int:
        depth = 0
        while node is not None:
            depth, node = depth + len(node.ids), node.parent
        return depth
