"""Matrix products in which a row's result does not depend on the other rows.

A search must be the same however its branches are batched, so `x @ w` has to give every row
the same bits at any position among any number of rows. BLAS does not promise that: with one
row it takes another routine, the tail of a block runs other code, and long inner sums are cut
where it suits the shape. What does hold depends on the processor, so it is measured when a
model is loaded, and the cheapest way that holds is taken:

ROWS    x @ w, the row count rounded up to one of a list (holds on processors with AVX-512).
        The inner dimension is cut in blocks that are added up in order, which takes the
        choice of where to cut away from BLAS.
TILES   16 rows at a time along the vector lanes, (w.T @ x.T).T, so that every product has
        the same shape (holds on AVX2 too; costs 20-30 % at 32 rows or more, more below 16)
SINGLE  one product per row. Always holds; slow; only where neither of the above does.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from enum import Enum

import numpy as np

from marco_search.runtime.embedded.safetensors import Floats

MAX_ROWS = 256  # no more rows than this are multiplied at once
TILE = 16
INNER_BLOCK = 256  # no OpenBLAS kernel in use cuts inner sums shorter than this
_PROBE_ROWS = 64
_SMALL_PRODUCT = 1_000_000  # OpenBLAS takes other kernels for M * N * K up to this
_LANES = 64  # columns are cut at multiples of this
_LEAST_COLUMNS = 192  # narrower blocks are not worth their calls


class Way(Enum):
    """How a product is computed; see the module's text. The value lists the row counts."""

    ROWS = (2, 4, 6, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96, 128, 192, MAX_ROWS)
    TILES = tuple(range(TILE, MAX_ROWS + 1, TILE))
    SINGLE = tuple(range(1, MAX_ROWS + 1))

    def padded(self, rows: int) -> int:
        """The row count to compute for `rows` rows, 1 <= rows <= MAX_ROWS."""
        return int(self.value[bisect_left(self.value, rows)])


_Block = tuple[slice, list[tuple[slice, Floats]]]
"""A range of the inner dimension, and the weights there by ranges of columns."""


class Linear:
    """x [M, K] -> x @ weight [M, N], float32. M must be one of the way's row counts."""

    def __init__(self, weight: Floats) -> None:
        inner, self._columns = weight.shape
        # The tail of a row of results may be summed by other code: there is none.
        padded = -(-self._columns // _LANES) * _LANES
        self._weight = np.zeros((inner, padded), np.float32)
        self._weight[:, : self._columns] = weight
        self._blocks: dict[int, list[_Block]] = {}
        self.way = Way.SINGLE

    def __call__(self, x: Floats) -> Floats:
        """The product as a new array."""
        if self.way is Way.ROWS:
            found = self._in_blocks(x)
        elif self.way is Way.TILES:
            lanes = x.reshape(len(x) // TILE, TILE, -1).transpose(0, 2, 1)
            tiles = np.matmul(self._weight.T, lanes).transpose(0, 2, 1)
            found = np.ascontiguousarray(tiles).reshape(len(x), -1)
        else:
            found = np.concatenate([np.matmul(row[None], self._weight) for row in x])
        return found if found.shape[1] == self._columns else found[:, : self._columns]

    @property
    def shape(self) -> tuple[int, int]:
        """(K, N), with N as it is computed."""
        inner, padded = self._weight.shape
        return inner, padded

    def _in_blocks(self, x: Floats) -> Floats:
        rows = len(x)
        blocks = self._blocks.get(rows)
        if blocks is None:
            blocks = self._blocks[rows] = _cut(rows, self._weight)
        total = out = np.empty((rows, self._weight.shape[1]), np.float32)
        for number, (inner, pieces) in enumerate(blocks):
            if number == 1:
                out = np.empty_like(total)
            part = x[:, inner]
            for columns, weight in pieces:
                np.matmul(part, weight, out=out[:, columns])
            if number:
                total += out
        return total

    def move(self, memory: Floats) -> None:
        """Keep the weights in `memory`, which has room for exactly these."""
        moved = memory.reshape(self._weight.shape)
        moved[:] = self._weight
        self._weight = moved
        self._blocks.clear()

    def holds(self, way: Way) -> bool:
        """Whether rows are independent of each other when computed this way (measured)."""
        inner, outer = self.shape
        # A slice tells how sums are made, as long as it is on the same side of small products.
        columns = _SMALL_PRODUCT // (2 * min(inner, INNER_BLOCK)) // _LANES * _LANES + _LANES
        probe = Linear(self._weight[:, : min(outer, columns)])
        probe.way = way
        rng = np.random.default_rng(0)
        x = rng.standard_normal((_PROBE_ROWS, inner), dtype=np.float32)
        least = way.value[0]
        alone = np.concatenate([probe(x[i : i + least]) for i in range(0, _PROBE_ROWS, least)])
        for rows in way.value:
            order = rng.integers(0, _PROBE_ROWS, rows)  # every row at any place among any others
            if not np.array_equal(probe(x[order]), alone[order]):
                return False
        return True


def _cut(rows: int, weight: Floats) -> list[_Block]:
    """Blocks of the inner dimension; each in columns that keep its products small, if they can.

    OpenBLAS copies the weights into another order for all but small products, which for a
    few rows takes longer than multiplying.
    """
    inner, outer = weight.shape
    blocks: list[_Block] = []
    for start in range(0, inner, INNER_BLOCK):
        part = slice(start, min(start + INNER_BLOCK, inner))
        width = _SMALL_PRODUCT // (rows * (part.stop - start)) // _LANES * _LANES
        if width < _LEAST_COLUMNS:
            width = outer
        columns = [slice(i, min(i + width, outer)) for i in range(0, outer, width)]
        blocks.append((part, [(c, weight[part, c]) for c in columns]))
    return blocks


def settle(linears: Sequence[Linear]) -> Way:
    """Give all products of a model the cheapest way that holds for each of them.

    Returns that way, which says how many rows to compute. Products of one shape are tried
    once.
    """
    of_shape = {linear.shape: linear for linear in linears}
    ways = (way for way in (Way.ROWS, Way.TILES) if all(x.holds(way) for x in of_shape.values()))
    chosen = next(ways, Way.SINGLE)
    for linear in linears:
        linear.way = chosen
    return chosen


def gather(linears: Sequence[Linear]) -> None:
    """Move all weights into one piece of memory, for which numpy asks for huge pages.

    Every step reads all weights; with few pages it waits less for their addresses.
    """
    arena = np.zeros(sum(math.prod(linear.shape) for linear in linears), np.float32)
    at = 0
    for linear in linears:
        end = at + math.prod(linear.shape)
        linear.move(arena[at:end])
        at = end
