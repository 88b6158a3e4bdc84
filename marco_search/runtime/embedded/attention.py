"""Attention of rows to the keys and values in slots, chunk by chunk.

Every product is [heads of a group, head_dim] x one whole chunk, whoever asks and however long
the sequence is, and chunks are added up in order. So a row's result depends on nothing but
its own query and keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from marco_search.runtime.embedded.safetensors import Floats
from marco_search.runtime.embedded.slots import CHUNK

Ints = npt.NDArray[np.int64]

_MASKS = np.triu(np.full((CHUNK + 1, CHUNK), -np.inf, np.float32))
"""Row n lets the first n keys of a chunk be seen."""


@dataclass(frozen=True, slots=True)
class Span:
    """Rows that attend alike, and from which slots they take their chunks."""

    rows: slice
    sources: tuple[tuple[slice, slice], ...]  # (chunks, slots): one slot for all, or one a row
    chunks: int  # that hold the longest row's keys
    masked: int  # first chunk in which some row has to be masked
    mask: Floats  # [rows, 1, 1, chunks - masked, CHUNK]: 0 or -inf


def span_of(rows: slice, slots: slice, positions: Ints, shared: int = 0) -> Span:
    """The span of rows at `positions`: row i to slot i of `slots`, or all to its only one.

    The first `shared` chunks hold the same in all these slots; they are read from the first,
    which spares the processor's cache.
    """
    first, last = int(positions.min()), int(positions.max())
    chunks, masked = last // CHUNK + 1, first // CHUNK
    if masked == last // CHUNK:
        mask = _MASKS[positions % CHUNK + 1][:, None, None, None]
    else:
        seen = positions[:, None] - np.arange(masked, chunks) * CHUNK
        mask = _MASKS[np.clip(seen, -1, CHUNK - 1) + 1][:, None, None]
    shared = min(shared, chunks - 1)
    sources = [(slice(0, shared), slice(slots.start, slots.start + 1))] if shared else []
    sources.append((slice(shared, chunks), slots))
    return Span(rows, tuple(sources), chunks, masked, mask)


def attend(queries: Floats, keys: Floats, values: Floats, span: Span) -> Floats:
    """What the rows read: queries [rows, kv, group, d] -> [rows, kv * group * d].

    `keys` and `values` are one layer's, as in slots.py; queries are scaled already.
    """
    rows, kv, group, d = queries.shape
    scores = np.empty((rows, kv, group, span.chunks, CHUNK), np.float32)
    by_chunk = scores.transpose(0, 1, 3, 2, 4)
    for chunks, slots in span.sources:
        np.matmul(queries[:, :, None], keys[slots, :, chunks], out=by_chunk[:, :, chunks])
    scores[:, :, :, span.masked :] += span.mask
    flat = scores.reshape(rows, kv, group, -1)
    flat -= flat.max(axis=-1, keepdims=True)
    np.exp(flat, out=flat)
    # The sum of the weights rides along as one more column, so that chunks are added in order
    # for both: a chunk that is all masked adds exact zeros.
    sums = np.empty((rows, kv, span.chunks, group, d + 1), np.float32)
    for chunks, slots in span.sources:
        np.matmul(by_chunk[:, :, chunks], values[slots, :, chunks], out=sums[:, :, chunks, :, :d])
    np.add.reduce(by_chunk, axis=-1, out=sums[..., d])
    total: Floats = np.add.reduce(sums, axis=2) if span.chunks > 1 else sums[:, :, 0]
    read: Floats = total[..., :d] / total[..., d:]
    return read.reshape(rows, -1)
