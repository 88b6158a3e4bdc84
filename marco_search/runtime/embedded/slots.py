"""Keys and values of the sequences being decoded: one slot each, in chunks of 64 tokens.

keys    a layer: [slot, kv_head, chunk, head_dim, 64]   (transposed: a score is a plain product)
values  a layer: [slot, kv_head, chunk, 64, head_dim]

Every attention product runs over one whole chunk, so its shape, and with it the way it is
summed, never depends on how long a sequence is. What lies past a sequence's end is masked.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from marco_search.runtime.embedded.config import ModelConfig
from marco_search.runtime.embedded.safetensors import Floats

CHUNK = 64


Shape = tuple[int, int]
"""Slots, and chunks in each of them."""


class Slots:
    """Room for some sequences of some length, as many for each. Other shapes keep what fits."""

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
        fitting = limit_bytes // self.size_bytes((slots, 1))
        return slots, max(chunks, min(ample, fitting))

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

    def reserve(self, slots: int, tokens: int) -> None:
        """Make room for slots 0..slots-1 of `tokens` tokens each, whatever it takes."""
        self.resize(self.shape_for(slots, tokens, sys.maxsize))

    def put(self, slot: int, start: int, keys: Floats, values: Floats) -> None:
        """Write tokens from `start` on: keys [L, kv, d, n], values [L, kv, n, d]."""
        for chunk, inside, outside in _pieces(start, start + values.shape[2]):
            for layer in range(self._config.layers):
                self.keys[layer][slot, :, chunk, :, inside] = keys[layer, ..., outside]
                self.values[layer][slot, :, chunk, inside] = values[layer, :, outside]

    def get(self, slot: int, start: int, end: int) -> tuple[Floats, Floats]:
        """Copies of the keys and values of tokens start..end-1, shaped as `put` takes them."""
        c = self._config
        keys = np.empty((c.layers, c.kv_heads, c.head_dim, end - start), np.float32)
        values = np.empty((c.layers, c.kv_heads, end - start, c.head_dim), np.float32)
        for chunk, inside, outside in _pieces(start, end):
            for layer in range(c.layers):
                keys[layer, ..., outside] = self.keys[layer][slot, :, chunk, :, inside]
                values[layer, :, outside] = self.values[layer][slot, :, chunk, inside]
        return keys, values

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


def _pieces(start: int, end: int) -> Iterator[tuple[int, slice, slice]]:
    """Cut tokens start..end-1 at chunk borders: (chunk, slice in it, slice from start)."""
    at = start
    while at < end:
        chunk, offset = divmod(at, CHUNK)
        count = min(CHUNK - offset, end - at)
        yield chunk, slice(offset, offset + count), slice(at - start, at - start + count)
        at += count
