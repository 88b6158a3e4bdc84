"""Matrix products in which a row's result does not depend on the other rows.

A search must be the same however its branches are batched, so `x @ w` has to give every row
the same bits at any position among any number of rows. BLAS does not promise that: with one
row it takes another routine, the tail of a block runs other code, and long inner sums are cut
where it suits the shape. What does hold depends on the processor, so it is measured when a
model is loaded, and the cheapest way that holds is taken:

ROWS    x @ w, the row count rounded up to one of a list (holds on processors with AVX-512).
        The inner dimension may be cut in blocks that are added up in order, which takes the
        choice of where to cut away from BLAS.
TILES   16 rows at a time along the vector lanes, (w.T @ x.T).T, so that every product has
        the same shape (holds on AVX2 too; costs 20-30 % at 32 rows or more, more below 16)
SINGLE  one product per row. Always holds; slow; only where neither of the above does.
"""

from __future__ import annotations

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


class Linear:
    """x [M, K] -> x @ weight [M, N], float32. M must be one of the way's row counts."""

    def __init__(self, weight: Floats) -> None:
        self.weight = np.ascontiguousarray(weight, np.float32)
        self.way = Way.SINGLE
        self.split = False

    def __call__(self, x: Floats) -> Floats:
        """The product as a new array."""
        rows, inner = x.shape
        if self.way is Way.TILES:
            lanes = x.reshape(rows // TILE, TILE, inner).transpose(0, 2, 1)
            out: Floats = np.matmul(self.weight.T, lanes)
            return np.ascontiguousarray(out.transpose(0, 2, 1)).reshape(rows, -1)
        if self.way is Way.SINGLE:
            return np.concatenate([np.matmul(row[None], self.weight) for row in x])
        if not self.split:
            return _product(x, self.weight)
        total = _product(x[:, :INNER_BLOCK], self.weight[:INNER_BLOCK])
        for start in range(INNER_BLOCK, inner, INNER_BLOCK):
            block = slice(start, start + INNER_BLOCK)
            total += _product(x[:, block], self.weight[block])
        return total

    def holds(self, way: Way, split: bool) -> bool:
        """Whether rows are independent of each other when computed this way (measured)."""
        inner, outer = self.weight.shape
        # A slice tells how sums are made, as long as it is on the same side of small products.
        columns = min(outer, max(TILE * TILE, _SMALL_PRODUCT // (2 * inner) + 1))
        probe = Linear(self.weight[:, :columns])
        probe.way, probe.split = way, split
        rng = np.random.default_rng(0)
        x = rng.standard_normal((_PROBE_ROWS, inner), dtype=np.float32)
        least = way.value[0]
        alone = np.concatenate([probe(x[i : i + least]) for i in range(0, _PROBE_ROWS, least)])
        for rows in way.value:
            order = rng.integers(0, _PROBE_ROWS, rows)  # every row at any place among any others
            if not np.array_equal(probe(x[order]), alone[order]):
                return False
        return True


def _product(x: Floats, weight: Floats) -> Floats:
    """x @ weight, in blocks of columns where that keeps each block a small product.

    OpenBLAS copies the weights into another order for all but small products, which for a
    few rows takes longer than multiplying.
    """
    (rows, inner), outer = x.shape, weight.shape[1]
    columns = _SMALL_PRODUCT // (rows * inner) // _LANES * _LANES
    out = np.empty((rows, outer), np.float32)
    if columns >= outer or columns < _LEAST_COLUMNS:
        return np.matmul(x, weight, out=out)
    for start in range(0, outer, columns):
        block = slice(start, start + columns)
        np.matmul(x, weight[:, block], out=out[:, block])
    return out


def settle(linears: Sequence[Linear]) -> Way:
    """Give all products of a model the cheapest way that holds for each of them.

    Products of one shape share the outcome. Returns the common way, which says how many
    rows to compute.
    """
    for way in (Way.ROWS, Way.TILES):
        outcome: dict[tuple[int, ...], bool | None] = {}
        for linear in linears:
            shape = linear.weight.shape
            if shape not in outcome:
                splits = (False, True) if way is Way.ROWS and shape[0] > INNER_BLOCK else (False,)
                outcome[shape] = next((s for s in splits if linear.holds(way, s)), None)
            split = outcome[shape]
            if split is None:
                break
            linear.way, linear.split = way, split
        else:
            return way
    for linear in linears:
        linear.way, linear.split = Way.SINGLE, False
    return Way.SINGLE
