"""Keys and values of the sequences being decoded: one slot each, in chunks of 64 tokens.

keys    [layer, slot, kv_head, chunk, head_dim, 64]   (transposed: a score is a plain product)
values  [layer, slot, kv_head, chunk, 64, head_dim]

Every attention product runs over one whole chunk, so its shape, and with it the way it is
summed, never depends on how long a sequence is. What lies past a sequence's end is masked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from marco_search.runtime.embedded.config import ModelConfig
from marco_search.runtime.embedded.safetensors import Floats

CHUNK = 64


class Slots:
    """Grows with the number of sequences and their length; never shrinks."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self.keys = self._zeros(0, 0, values=False)
        self.values = self._zeros(0, 0, values=True)

    def reserve(self, slots: int, tokens: int) -> None:
        """Make room for slots 0..slots-1 of `tokens` tokens each; what is there stays."""
        have_slots, have_chunks = self.keys.shape[1], self.keys.shape[3]
        chunks = -(-tokens // CHUNK)
        if slots <= have_slots and chunks <= have_chunks:
            return
        slots = max(have_slots, 1 << (slots - 1).bit_length())
        most = -(-self._config.context_tokens // CHUNK)
        chunks = max(have_chunks, min(most, 1 << (chunks - 1).bit_length()))
        for name in ("keys", "values"):
            old: Floats = getattr(self, name)
            new = self._zeros(slots, chunks, values=name == "values")
            new[:, :have_slots, :, :have_chunks] = old
            setattr(self, name, new)

    def put(self, slot: int, start: int, keys: Floats, values: Floats) -> None:
        """Write tokens from `start` on: keys [L, kv, d, n], values [L, kv, n, d]."""
        for chunk, inside, outside in _pieces(start, start + values.shape[2]):
            self.keys[:, slot, :, chunk, :, inside] = keys[..., outside]
            self.values[:, slot, :, chunk, inside] = values[:, :, outside]

    def get(self, slot: int, start: int, end: int) -> tuple[Floats, Floats]:
        """Copies of the keys and values of tokens start..end-1, shaped as `put` takes them."""
        c = self._config
        keys = np.empty((c.layers, c.kv_heads, c.head_dim, end - start), np.float32)
        values = np.empty((c.layers, c.kv_heads, end - start, c.head_dim), np.float32)
        for chunk, inside, outside in _pieces(start, end):
            keys[..., outside] = self.keys[:, slot, :, chunk, :, inside]
            values[:, :, outside] = self.values[:, slot, :, chunk, inside]
        return keys, values

    def copy(self, source: int, targets: Sequence[int], tokens: int) -> None:
        """Give the slots `targets` the first `tokens` tokens of the slot `source`."""
        chunks, into = slice(0, -(-tokens // CHUNK)), list(targets)
        self.keys[:, into, :, chunks] = self.keys[:, source, None, :, chunks]
        self.values[:, into, :, chunks] = self.values[:, source, None, :, chunks]

    def _zeros(self, slots: int, chunks: int, *, values: bool) -> Floats:
        # Zeros, not whatever memory holds: a masked NaN would still spoil a sum.
        c = self._config
        last = (CHUNK, c.head_dim) if values else (c.head_dim, CHUNK)
        return np.zeros((c.layers, slots, c.kv_heads, chunks, *last), np.float32)


def _pieces(start: int, end: int) -> Iterator[tuple[int, slice, slice]]:
    """Cut tokens start..end-1 at chunk borders: (chunk, slice in it, slice from start)."""
    at = start
    while at < end:
        chunk, offset = divmod(at, CHUNK)
        count = min(CHUNK - offset, end - at)
        yield chunk, slice(offset, offset + count), slice(at - start, at - start + count)
        at += count
