"""Keys and values: of the sequences being decoded (Slots) and of known prefixes (RadixCache).

Slots hold whole chunks of 64 tokens:
keys    a layer: [slot, kv_head, chunk, head_dim, 64]   (transposed: a score is a plain product)
values  a layer: [slot, kv_head, chunk, 64, head_dim]

Every attention product runs over one whole chunk, so its shape, and with it the way it is
summed, never depends on how long a sequence is. What lies past a sequence's end is masked.

The cache is a radix tree over token ids: an edge carries a run of tokens with their keys and
values, so a prefix that several branches share is stored once. Over its budget, the leaves used
least recently go first. Both are used by the decoding thread alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

import numpy as np

from marco_search.runtime.embedded.checkpoint import ModelConfig
from marco_search.runtime.embedded.linear import Floats
from marco_search.runtime.embedded.tokenizer import TokenIds

CHUNK = 64
_NODE_BYTES = 512  # roughly, the objects of a node
_KEEP_AFTER_EVICTION = 0.9  # of the budget, so that evictions are rare

Shape = tuple[int, int]
"""Slots, and chunks in each of them."""

Fetch = Callable[[int, int], Floats]
"""(start, end) -> keys and values of these tokens, [2, layers, tokens, kv_heads, head_dim]."""


class Slots:
    """Room for some sequences of some length, the same for each."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self.shape: Shape = (0, 0)
        self.keys = [self._zeros((0, 0), values=False)] * config.layers
        self.values = [self._zeros((0, 0), values=True)] * config.layers

    def size_bytes(self, shape: Shape) -> int:
        """What slots of this shape take."""
        c = self._config
        return math.prod(shape) * CHUNK * 2 * c.layers * c.kv_heads * c.head_dim * 4

    def shape_for(self, slots: int, tokens: int, limit_bytes: int) -> Shape:
        """A shape for `slots` sequences of `tokens` tokens: as it is, larger, or just enough.

        Within the limit unless what is asked for takes more.
        """
        chunks = chunks_of(tokens)
        have_slots, have_chunks = self.shape
        if slots <= have_slots and chunks <= have_chunks:
            return self.shape
        most = chunks_of(self._config.context_tokens)
        ample = max(have_chunks, min(most, 1 << (chunks - 1).bit_length()))
        more = max(have_slots, 1 << (slots - 1).bit_length())
        if self.size_bytes((more, ample)) <= limit_bytes:
            return more, ample
        return slots, max(chunks, min(ample, limit_bytes // self.size_bytes((slots, 1))))

    def resize(self, shape: Shape) -> None:
        """Take this shape; slots and chunks that are in both stay as they are.

        Layer by layer, so that old and new are never there as a whole.
        """
        slots, chunks = map(min, shape, self.shape)
        for arrays, is_values in ((self.keys, False), (self.values, True)):
            for layer, old in enumerate(arrays):
                new = self._zeros(shape, values=is_values)
                new[:slots, :, :chunks] = old[:slots, :, :chunks]
                arrays[layer] = new
        self.shape = shape

    def put(self, slot: int, start: int, kv: Floats) -> None:
        """Write the keys and values of tokens from `start` on."""
        chunks, offsets = np.divmod(np.arange(start, start + kv.shape[2]), CHUNK)
        for layer in range(self._config.layers):
            self.keys[layer][slot, :, chunks, :, offsets] = kv[0, layer]
            self.values[layer][slot, :, chunks, offsets] = kv[1, layer]

    def get(self, slot: int, start: int, end: int) -> Floats:
        """A copy of the keys and values of tokens start..end-1."""
        c = self._config
        chunks, offsets = np.divmod(np.arange(start, end), CHUNK)
        kv = np.empty((2, c.layers, end - start, c.kv_heads, c.head_dim), np.float32)
        for layer in range(c.layers):
            kv[0, layer] = self.keys[layer][slot, :, chunks, :, offsets]
            kv[1, layer] = self.values[layer][slot, :, chunks, offsets]
        return kv

    def copy(self, source: int, targets: Sequence[int], tokens: int) -> None:
        """Give the slots `targets` the first `tokens` tokens of the slot `source`."""
        chunks, into = slice(0, chunks_of(tokens)), list(targets)
        for array in (*self.keys, *self.values):
            array[into, :, chunks] = array[source, None, :, chunks]

    def _zeros(self, shape: Shape, *, values: bool) -> Floats:
        # Zeros, not whatever memory holds: a masked NaN would still spoil a sum.
        c = self._config
        last = (CHUNK, c.head_dim) if values else (c.head_dim, CHUNK)
        return np.zeros((shape[0], c.kv_heads, shape[1], *last), np.float32)


def chunks_of(tokens: int) -> int:
    """How many chunks so many tokens fill."""
    return -(-tokens // CHUNK)


@dataclass(eq=False, slots=True)
class Node:
    """The tokens of one edge and what the model computed for them.

    `logits` are those after the last token, where they are known.
    """

    ids: TokenIds
    kv: Floats
    parent: Node | None
    children: dict[int, Node] = field(default_factory=dict)
    logits: Floats | None = None
    used: int = 0

    @property
    def size_bytes(self) -> int:
        """What the node counts for in the budget."""
        extra = 0 if self.logits is None else self.logits.nbytes
        return self.ids.nbytes + self.kv.nbytes + extra + _NODE_BYTES


@dataclass(frozen=True, slots=True)
class Match:
    """The longest cached prefix of a sequence.

    `path`: the nodes it goes through, each with where it starts; the last may match in part.
    `logits`: after the whole sequence, if all of it matched and they are known.
    """

    length: int
    path: list[tuple[int, Node]]
    logits: Floats | None

    def pieces(self, length: int) -> Iterator[tuple[int, Floats]]:
        """(start, keys and values) that cover the first `length` tokens of the match."""
        for start, node in self.path:
            count = min(len(node.ids), length - start)
            if count > 0:
                yield start, node.kv[:, :, :count]


class RadixCache:
    """Keys and values of token prefixes, within `budget_bytes`."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._root = Node(np.zeros(0, np.int32), np.zeros(0, np.float32), None)
        self._clock = 0
        self.size_bytes = 0

    def match(self, ids: TokenIds) -> Match:
        """The longest cached prefix of `ids`; marks it as just used."""
        path, length = self._descend(ids)
        start, node = path[-1]
        whole = length == len(ids) == start + len(node.ids)
        return Match(length, path, node.logits if whole else None)

    def limit(self, budget_bytes: int) -> None:
        """Keep within another budget from now on."""
        self.budget_bytes = budget_bytes
        if self.size_bytes > budget_bytes:
            self._evict(budget_bytes)

    def insert(self, ids: TokenIds, fetch: Fetch, logits: Floats | None = None) -> None:
        """Keep a sequence: `fetch` is asked only for what is not there yet.

        `logits` are those after its last token. May evict, even what was just put in.
        """
        path, length = self._descend(ids)
        start, node = path[-1]
        if length < start + len(node.ids) and (length < len(ids) or logits is not None):
            node = self._split(node, length - start)
        if length < len(ids):
            rest, kv = np.array(ids[length:], np.int32), fetch(length, len(ids))
            child = Node(rest, kv, node, used=self._clock)
            node.children[int(ids[length])] = child
            self.size_bytes += child.size_bytes
            node = child
        if logits is not None and node.logits is None and node.parent is not None:
            node.logits = logits.copy()
            self.size_bytes += logits.nbytes
        if self.size_bytes > self.budget_bytes:
            self._evict(int(self.budget_bytes * _KEEP_AFTER_EVICTION))

    def _descend(self, ids: TokenIds) -> tuple[list[tuple[int, Node]], int]:
        """(nodes from the root to the deepest one touched and their starts, tokens matched)."""
        self._clock += 1
        node, length = self._root, 0
        path = [(0, node)]
        while length == path[-1][0] + len(node.ids) and length < len(ids):
            child = node.children.get(int(ids[length]))
            if child is None:
                break
            child.used = self._clock
            path.append((length, child))
            rest = ids[length : length + len(child.ids)]
            differs = np.flatnonzero(rest != child.ids[: len(rest)])
            length += int(differs[0]) if differs.size else len(rest)
            node = child
        return path, length

    def _split(self, node: Node, at: int) -> Node:
        """Cut a node after `at` tokens; the lower part stays itself. Returns the upper."""
        parent = node.parent
        assert parent is not None, "the root has no tokens to cut"
        upper = Node(node.ids[:at].copy(), node.kv[:, :, :at].copy(), parent, used=node.used)
        node.ids, node.kv = node.ids[at:].copy(), node.kv[:, :, at:].copy()
        node.parent = upper
        upper.children[int(node.ids[0])] = node
        parent.children[int(upper.ids[0])] = upper
        self.size_bytes += _NODE_BYTES
        return upper

    def _evict(self, target_bytes: int) -> None:
        nodes = list(self._root.children.values())
        for node in nodes:
            nodes += node.children.values()
        # A node is used whenever one below it is. Of those used together the lowest goes first.
        nodes.reverse()
        nodes.sort(key=attrgetter("used"))
        for node in nodes:
            if self.size_bytes <= target_bytes:
                return
            assert node.parent is not None, "the root is not among them"
            del node.parent.children[int(node.ids[0])]
            self.size_bytes -= node.size_bytes
