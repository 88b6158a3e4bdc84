"""A decoder in NumPy: any mix of new tokens of several sequences in one pass.

Llama, Qwen2 and Qwen3: checkpoint.py says what tells them apart.

A pass takes rows; a row is one token of one sequence at one position. Decoding gives every
sequence one row, prefilling gives it one row per prompt token. Both go through the same
operations in the same shapes, so a token's result is bit-for-bit the same whether it was
prefilled or decoded, and with whatever else it shared the pass (linear.py, cache.py).

In attention every product is [heads of a group, head_dim] x one whole chunk, however long the
sequence is, and chunks are added up in order: a row's result depends on nothing but its own
query and keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from marco_search.runtime.embedded.cache import CHUNK, Slots, chunks_of
from marco_search.runtime.embedded.checkpoint import Layer, ModelConfig, Weights
from marco_search.runtime.embedded.linear import MAX_ROWS, Floats, Ints

_SCORES_AT_ONCE = 1 << 21  # bounds the attention's scratch memory, in floats
_LEAST_ROWS = 16  # of a long prompt in one pass, whatever the scratch
_MASKS = np.triu(np.full((CHUNK + 1, CHUNK), -np.inf, np.float32))
"""Row n lets the first n keys of a chunk be seen."""


@dataclass(frozen=True, slots=True)
class Part:
    """Tokens to append to one slot, which holds `start` tokens so far."""

    slot: int
    start: int
    ids: npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Span:
    """Rows that attend alike.

    slots: one for all rows, or one a row; chunks: how many hold the longest row's keys; mask: 0
    or -inf for the last chunks, those in which some row has to be masked.
    """

    rows: slice
    slots: slice
    chunks: int
    mask: Floats

    def of(self, part: slice) -> Span:
        """The span of some of its rows; `part` counts from its first."""
        if len(self.mask) == part.stop - part.start:
            return self
        slots = self.slots
        if slots.stop - slots.start > 1:
            slots = slice(slots.start + part.start, slots.start + part.stop)
        return replace(self, slots=slots, mask=self.mask[part])


def span_of(rows: slice, slots: slice, positions: Ints) -> Span:
    """The span of rows at `positions`: row i to slot i of `slots`, or all to its only one."""
    first, last = int(positions.min()), int(positions.max())
    chunks, masked = last // CHUNK + 1, first // CHUNK
    seen = positions[:, None] - np.arange(masked, chunks) * CHUNK
    mask = _MASKS[np.clip(seen, -1, CHUNK - 1) + 1][:, None, None]
    return Span(rows, slots, chunks, mask)


def attend(queries: Floats, keys: Floats, values: Floats, span: Span) -> Floats:
    """What the rows read: queries [rows, kv, group, d] -> [rows, kv * group * d].

    `keys` and `values` are one layer's, as in cache.py; queries are scaled already.
    """
    rows, kv, group, d = queries.shape
    scores = np.empty((rows, kv, group, span.chunks, CHUNK), np.float32)
    by_chunk = scores.transpose(0, 1, 3, 2, 4)
    np.matmul(queries[:, :, None], keys[span.slots, :, : span.chunks], out=by_chunk)
    scores[:, :, :, -span.mask.shape[3] :] += span.mask
    flat = scores.reshape(rows, kv, group, -1)
    flat -= flat.max(axis=-1, keepdims=True)
    np.exp(flat, out=flat)
    # The sum of the weights rides along as one more column, so that chunks are added in order
    # for both: a chunk that is all masked adds exact zeros.
    sums = np.empty((rows, kv, span.chunks, group, d + 1), np.float32)
    np.matmul(by_chunk, values[span.slots, :, : span.chunks], out=sums[..., :d])
    np.add.reduce(by_chunk, axis=-1, out=sums[..., d])
    total: Floats = np.add.reduce(sums, axis=2) if span.chunks > 1 else sums[:, :, 0]
    read: Floats = total[..., :d] / total[..., d:]
    return read.reshape(rows, -1)


class Decoder:
    """One model and the slots of the sequences it works on. Not thread-safe."""

    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        self.config = config
        self.slots = Slots(config)
        self.team = weights.team
        self._weights = weights
        self._rotations = np.zeros((0, config.head_dim // 2), np.complex64)

    def step(self, ids: Ints, positions: Ints) -> Floats:
        """Append ids[i] to slot i at positions[i]; the logits after each, [rows, vocab]."""
        hidden = []
        for start in range(0, len(ids), MAX_ROWS):
            rows = slice(start, min(start + MAX_ROWS, len(ids)))
            span = span_of(slice(0, rows.stop - start), rows, positions[rows])
            slots = np.arange(rows.start, rows.stop)
            hidden.append(self._pass(ids[rows], slots, positions[rows], [span]))
        return self._logits(np.concatenate(hidden))

    def prefill(self, parts: Sequence[Part]) -> Floats:
        """Append whole parts; the logits after the last token of each, [parts, vocab].

        Rows of all parts run together, at most MAX_ROWS in a pass.
        """
        last = np.empty((len(parts), self.config.hidden), np.float32)
        for pieces in self._passes(parts):
            ids = np.concatenate([parts[p].ids[a:b] for p, a, b in pieces]).astype(np.int64)
            slots = np.concatenate([np.full(b - a, parts[p].slot) for p, a, b in pieces])
            positions = np.concatenate([parts[p].start + np.arange(a, b) for p, a, b in pieces])
            spans, row = [], 0
            for p, a, b in pieces:
                rows = slice(row, row + b - a)
                slot = slice(parts[p].slot, parts[p].slot + 1)
                spans.append(span_of(rows, slot, positions[rows]))
                row = rows.stop
            hidden = self._pass(ids, slots, positions, spans)
            for (p, _, _), span in zip(pieces, spans, strict=True):
                last[p] = hidden[span.rows.stop - 1]
        return self._logits(last)

    def _passes(self, parts: Sequence[Part]) -> Iterator[list[tuple[int, int, int]]]:
        """Cut parts into passes: lists of (part, from offset, to offset)."""
        pieces: list[tuple[int, int, int]] = []
        room = MAX_ROWS
        for p, part in enumerate(parts):
            a, n = 0, len(part.ids)
            keys = chunks_of(part.start + n) * CHUNK
            most = max(_LEAST_ROWS, min(MAX_ROWS, _SCORES_AT_ONCE // (keys * self.config.heads)))
            while a < n:
                count = min(n - a, most, room)
                pieces.append((p, a, a + count))
                a, room = a + count, room - count
                if not room:
                    yield pieces
                    pieces, room = [], MAX_ROWS
        if pieces:
            yield pieces

    def _logits(self, hidden: Floats) -> Floats:
        """Logits [n, vocab] of final hidden states [n, hidden]."""
        out = []
        for start in range(0, len(hidden), MAX_ROWS):
            rows = hidden[start : start + MAX_ROWS]
            out.append(self._weights.head(self._weights.mode.pad(rows))[: len(rows)])
        return out[0] if len(out) == 1 else np.concatenate(out)

    def _pass(self, ids: Ints, slots: Ints, positions: Ints, spans: list[Span]) -> Floats:
        """The final hidden states, normalised, of all rows; [rows, hidden]."""
        x = self._weights.mode.pad(self._weights.embedding[ids])
        rotations = self._rotations_at(positions)[:, None]
        chunks, offsets = np.divmod(positions, CHUNK)
        place = (slots, chunks, offsets)
        for index, layer in enumerate(self._weights.layers):
            x += layer.out(self._attend(index, layer, self._normed(x), rotations, place, spans))
            gate_up = layer.gate_up(self._normed(x))
            half = gate_up.shape[1] // 2
            gate, up = gate_up[:, :half], gate_up[:, half:]
            # silu(2 g) = g + g tanh(g): the gate's weights are halved, nothing overflows.
            gated = np.tanh(gate)
            gated += 1
            gated *= gate
            gated *= up
            x += layer.down(gated)
        return self._normed(x)[: len(ids)]

    def _attend(
        self,
        index: int,
        layer: Layer,
        x: Floats,
        rotations: npt.NDArray[np.complex64],
        place: tuple[Ints, Ints, Ints],
        spans: list[Span],
    ) -> Floats:
        c, rows, d = self.config, len(rotations), self.config.head_dim
        key_at, value_at = c.heads * d, (c.heads + c.kv_heads) * d
        qkv = layer.qkv(x)
        if layer.qkv_bias is not None:
            qkv += layer.qkv_bias
        if layer.head_norms is not None:
            per_head = qkv[:, :value_at].reshape(len(x), -1, d)  # a view
            per_head /= self._norms(per_head)
            per_head *= layer.head_norms
        rope(qkv[:rows, :value_at], rotations)
        slots, chunks, offsets = place
        keys, values = self.slots.keys[index], self.slots.values[index]
        keys[slots, :, chunks, :, offsets] = qkv[:rows, key_at:value_at].reshape(rows, -1, d)
        values[slots, :, chunks, offsets] = qkv[:rows, value_at:].reshape(rows, -1, d)
        queries = qkv[:rows, :key_at].reshape(rows, c.kv_heads, c.heads // c.kv_heads, d)
        mixed = np.zeros((len(x), key_at), np.float32)
        for span in spans:
            read, asked = mixed[span.rows], queries[span.rows]

            def work(part: slice, span: Span = span, read: Any = read, asked: Any = asked) -> None:
                read[part] = attend(asked[part], keys, values, span.of(part))

            self.team.share(work, len(read))
        return mixed

    def _normed(self, x: Floats) -> Floats:
        scaled: Floats = x / self._norms(x)
        return scaled

    def _norms(self, x: Floats) -> Floats:
        # sqrt(mean(x^2) + eps) but for a factor sqrt(size), which the weights hold.
        squares = np.vecdot(x, x)
        squares += np.float32(x.shape[-1] * self.config.rms_eps)
        roots: Floats = np.sqrt(squares)[..., None]
        return roots

    def _rotations_at(self, positions: Ints) -> npt.NDArray[np.complex64]:
        """cos + i sin of every rotary angle at these positions, [rows, head_dim / 2]."""
        last = int(positions.max())
        if last >= len(self._rotations):
            size = 1 << (last + 1).bit_length()
            angles = np.outer(np.arange(size), self.config.rope_speeds)
            self._rotations = (np.cos(angles) + 1j * np.sin(angles)).astype(np.complex64)
        return self._rotations[positions]


def rope(heads: Floats, rotations: npt.NDArray[np.complex64]) -> None:
    """Rotate, in place, every adjacent pair of `heads` [rows, heads * d]."""
    pairs = heads.view(np.complex64).reshape(len(heads), -1, rotations.shape[-1])
    pairs *= rotations
