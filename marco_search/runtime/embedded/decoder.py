"""The Qwen2 decoder in NumPy: any mix of new tokens of several sequences in one pass.

A pass takes rows; a row is one token of one sequence at one position. Decoding gives every
sequence one row, prefilling gives it one row per prompt token. Both go through the same
operations in the same shapes, so a token's result is bit-for-bit the same whether it was
prefilled or decoded, and with whatever else it shared the pass (linear.py, slots.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from marco_search.runtime.embedded.attention import Ints, Span, attend, span_of
from marco_search.runtime.embedded.config import ModelConfig
from marco_search.runtime.embedded.linear import MAX_ROWS
from marco_search.runtime.embedded.safetensors import Floats
from marco_search.runtime.embedded.slots import CHUNK, Slots
from marco_search.runtime.embedded.weights import Layer, Weights

_SCORES_AT_ONCE = 1 << 21  # bounds the attention's scratch memory, in floats
_LEAST_ROWS = 16  # of a long prompt in one pass, whatever the scratch


@dataclass(frozen=True, slots=True)
class Part:
    """Tokens to append to one slot, which holds `start` tokens so far."""

    slot: int
    start: int
    ids: npt.NDArray[np.integer[Any]]


class Decoder:
    """One model and the slots of the sequences it works on. Not thread-safe."""

    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        self.config = config
        self.slots = Slots(config)
        self._weights = weights
        self._turns = np.zeros((0, config.head_dim // 2), np.complex64)

    def step(self, ids: Ints, positions: Ints, shared: int = 0) -> Floats:
        """Append ids[i] to slot i at positions[i]; the logits after each, [rows, vocab].

        The first `shared` chunks are known to be the same in all these slots.
        """
        out = []
        for start in range(0, len(ids), MAX_ROWS):
            some = slice(start, min(start + MAX_ROWS, len(ids)))
            span = span_of(slice(0, some.stop - start), some, positions[some], shared)
            slots = np.arange(some.start, some.stop)
            hidden = self._pass(ids[some], slots, positions[some], [span])
            out.append(self._weights.head(hidden)[: len(slots)])
        return out[0] if len(out) == 1 else np.concatenate(out)

    def prefill(self, parts: Sequence[Part], wanted: Sequence[Sequence[int]]) -> list[Floats]:
        """Append whole parts; for each, the logits after the tokens at `wanted` offsets.

        Rows of all parts run together, at most 256 in a pass.
        """
        width = self.config.hidden
        kept = [np.empty((len(offsets), width), np.float32) for offsets in wanted]
        for piece in self._passes(parts):
            ids = np.concatenate([parts[p].ids[a:b] for p, a, b in piece]).astype(np.int64)
            slots = np.concatenate([np.full(b - a, parts[p].slot) for p, a, b in piece])
            positions = np.concatenate([parts[p].start + np.arange(a, b) for p, a, b in piece])
            spans, row = [], 0
            for p, a, b in piece:
                rows = slice(row, row + b - a)
                slot = slice(parts[p].slot, parts[p].slot + 1)
                spans.append(span_of(rows, slot, positions[rows]))
                row += b - a
            hidden = self._pass(ids, slots, positions, spans)
            for (p, a, b), span in zip(piece, spans, strict=True):
                for i, offset in enumerate(wanted[p]):
                    if a <= offset < b:
                        kept[p][i] = hidden[span.rows.start + offset - a]
        return [self.logits(h) for h in kept]

    def logits(self, hidden: Floats) -> Floats:
        """Logits [n, vocab] of final hidden states [n, hidden]."""
        out = [np.empty((0, self.config.vocab), np.float32)]
        for start in range(0, len(hidden), MAX_ROWS):
            rows = hidden[start : start + MAX_ROWS]
            padded = np.zeros((self._weights.way.padded(len(rows)), rows.shape[1]), np.float32)
            padded[: len(rows)] = rows
            out.append(self._weights.head(padded)[: len(rows)])
        return np.concatenate(out)

    def _passes(self, parts: Sequence[Part]) -> list[list[tuple[int, int, int]]]:
        """Cut parts into passes: lists of (part, from offset, to offset)."""
        passes: list[list[tuple[int, int, int]]] = [[]]
        room = MAX_ROWS
        for p, part in enumerate(parts):
            a, n = 0, len(part.ids)
            keys = -(-(part.start + n) // CHUNK) * CHUNK
            most = max(_LEAST_ROWS, min(MAX_ROWS, _SCORES_AT_ONCE // (keys * self.config.heads)))
            while a < n:
                take = min(n - a, most, room)
                passes[-1].append((p, a, a + take))
                a, room = a + take, room - take
                if not room:
                    passes.append([])
                    room = MAX_ROWS
        return [p for p in passes if p]

    def _pass(self, ids: Ints, slots: Ints, positions: Ints, spans: list[Span]) -> Floats:
        """The final hidden states, normalised, of all rows; [padded rows, hidden]."""
        rows = len(ids)
        x = np.zeros((self._weights.way.padded(rows), self.config.hidden), np.float32)
        x[:rows] = self._weights.embedding[ids]
        turns = self._turns_at(positions)[:, None]
        chunks, offsets = np.divmod(positions, CHUNK)
        place = (slots, chunks, offsets)
        for index, layer in enumerate(self._weights.layers):
            x += layer.out(self._attend(index, layer, self._normed(x), rows, turns, place, spans))
            gate_up = layer.gate_up(self._normed(x))
            half = gate_up.shape[1] // 2
            gate, up = gate_up[:, :half], gate_up[:, half:]
            # silu(2 g) = g + g tanh(g): the gate's weights are halved, nothing overflows.
            gated = np.tanh(gate)
            gated += 1
            gated *= gate
            gated *= up
            x += layer.down(gated)
        return self._normed(x)

    def _attend(
        self,
        index: int,
        layer: Layer,
        x: Floats,
        rows: int,
        turns: npt.NDArray[np.complex64],
        place: tuple[Ints, Ints, Ints],
        spans: list[Span],
    ) -> Floats:
        c = self.config
        d, grouped = c.head_dim, c.heads // c.kv_heads
        turned, end = (c.heads + c.kv_heads) * d, (c.heads + 2 * c.kv_heads) * d
        qkv = layer.qkv(x)
        qkv += layer.qkv_bias
        pairs = qkv[:rows, :turned].view(np.complex64).reshape(rows, -1, d // 2)
        pairs *= turns
        slots, chunks, offsets = place
        keys, values = self.slots.keys[index], self.slots.values[index]
        keys[slots, :, chunks, :, offsets] = qkv[:rows, c.heads * d : turned].reshape(rows, -1, d)
        values[slots, :, chunks, offsets] = qkv[:rows, turned:end].reshape(rows, -1, d)
        queries = qkv[:rows, : c.heads * d].reshape(rows, c.kv_heads, grouped, d)
        mixed = np.zeros((len(x), c.heads * d), np.float32)
        for span in spans:
            mixed[span.rows] = attend(queries[span.rows], keys, values, span)
        return mixed

    def _normed(self, x: Floats) -> Floats:
        # x / sqrt(mean(x^2) + eps), but for a factor sqrt(hidden) that the weights hold.
        squares = np.vecdot(x, x)
        squares += np.float32(self.config.hidden * self.config.rms_eps)
        scaled: Floats = x / np.sqrt(squares)[:, None]
        return scaled

    def _turns_at(self, positions: Ints) -> npt.NDArray[np.complex64]:
        """cos + i sin of every rotary angle at these positions, [rows, head_dim / 2]."""
        last = int(positions.max())
        if last >= len(self._turns):
            d, size = self.config.head_dim, 1 << (last + 1).bit_length()
            speeds = self.config.rope_theta ** -(np.arange(0, d, 2) / d)
            angles = np.outer(np.arange(size), speeds)
            self._turns = (np.cos(angles) + 1j * np.sin(angles)).astype(np.complex64)
        return self._turns[positions]
