"""Matrix products in which a row's result does not depend on the other rows.

A search must be the same however its branches are batched, so `x @ w` has to give every row
the same bits at any position among any number of rows. BLAS does not promise that: with one
row it takes another routine, the tail of a block runs other code, and long inner sums are cut
where it suits the shape. What does hold depends on the processor, so it is measured when a
model is loaded, and the cheapest mode that holds is taken:

PANELS  32 rows (or fewer) x a panel of 32 columns (holds on processors with AVX-512)
EIGHTS  8 rows, no fewer, x a panel of 32 columns: products of one shape (holds on AVX2 too)
LANES   16 rows along the vector lanes x a panel of 64 columns, (w.T @ x.T).T; holds where EIGHTS
        does, and takes half its time at 32 rows of a large model
SINGLE  one product per row. Always holds; slow; only where none of the above does.

A panel is some columns of the weights in one piece of memory, which is multiplied with all rows
while it is near. The product is small enough that OpenBLAS copies nothing: for all but small ones
it copies the weights into its own order, for each few rows again. It takes 6 rows at a time. The
inner dimension is cut too, in parts that are added up in order.

More than one BLAS thread would sum in another order again, so BLAS has one while decoding
(`one_blas_thread`). Panels are shared out among threads of our own (`Team`), which changes no
sum; for small models, whose weights stay in caches, these gain little and cost other processes
much.
"""

from __future__ import annotations

import itertools
import os
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import threadpoolctl

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

MAX_ROWS = 256  # no more rows than this are multiplied at once
_PROBE_ROWS = 64
_SMALL_PRODUCT = 1_000_000  # OpenBLAS takes other kernels for M * N * K up to this
_MULTIPLE = 64  # columns are cut at multiples of this
_LARGE_BYTES = 64 << 20  # of weights: more than caches hold


@dataclass(frozen=True, slots=True, eq=False)
class MatmulMode:
    """How a product is computed; see the module's text."""

    counts: Sequence[int]  #: the row counts that are multiplied
    rows: int = 0  #: the most of one product
    columns: int = 0  #: of a panel; 0: there are none

    def pad(self, x: Floats) -> Floats:
        """`x` with rows of zeros up to the next row count of this mode."""
        rows = self.counts[bisect_left(self.counts, len(x))]
        padded = np.zeros((rows, x.shape[1]), np.float32)
        padded[: len(x)] = x
        return padded


# As few tiles as rows allow, all of one size.
_TILED = [
    tiles * rows
    for tiles in range(1, MAX_ROWS // 32 + 1)
    for rows in (2, 6, 8, 12, 14, 18, 20, 24, 26, 30, 32)
    if tiles * rows > (tiles - 1) * 32
]
PANELS = MatmulMode(_TILED, 32, 32)
EIGHTS = MatmulMode(range(8, MAX_ROWS + 1, 8), 8, 32)
LANES = MatmulMode(range(16, MAX_ROWS + 1, 16), 16, 64)
SINGLE = MatmulMode(range(1, MAX_ROWS + 1))


class Team:
    """Threads that share out panels; with one, everything is done by the caller."""

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads
        self._made_in = 0
        self._pool: ThreadPoolExecutor | None = None

    def share(self, work: Callable[[slice], None], count: int) -> None:
        """`work` on all of range(count), a part in each thread; done when it returns."""
        parts = min(self.threads, count)
        if parts < 2:
            work(slice(0, count))
            return
        if self._pool is None or self._made_in != os.getpid():  # threads do not survive a fork
            self._made_in = os.getpid()
            self._pool = ThreadPoolExecutor(
                self.threads - 1,
                "marco-embedded-team",
                lambda: _set_threads([1] * len(_libraries())),
            )
        cuts = [count * i // parts for i in range(parts + 1)]
        mine, *others = (slice(a, b) for a, b in itertools.pairwise(cuts))
        waiting = [self._pool.submit(_quietly, work, part) for part in others]
        work(mine)
        for done in waiting:
            done.result()


def _quietly(work: Callable[[slice], None], part: slice) -> None:
    with np.errstate(all="ignore"):  # as in the engine's thread
        work(part)


class Linear:
    """x [M, K] -> x @ weight [M, N], float32. M must be one of the mode's row counts.

    `weight` has columns of zeros at its end where N is not a multiple of 64.
    """

    def __init__(self, weight: Floats) -> None:
        inner, self._columns = weight.shape
        # The tail of a row of results may be summed by other code: there is none.
        padded = -(-self._columns // _MULTIPLE) * _MULTIPLE
        self.weight = np.zeros((inner, padded), np.float32)
        self.weight[:, : self._columns] = weight
        self._panels: list[Floats] = []
        self._team = Team()
        self.mode = SINGLE

    def compute(self, mode: MatmulMode, team: Team) -> None:
        """Multiply this way from now on. Once in panels, they take the place of `weight`."""
        self.mode, self._team = mode, team
        if mode is not SINGLE:
            self._panels = _in_panels(self.weight, mode.rows, mode.columns)
            self.weight = self.weight[:0]

    def __call__(self, x: Floats) -> Floats:
        """The product as a new array."""
        if self._panels:
            found = self._by_panels(x)
        else:
            found = np.concatenate([np.matmul(row[None], self.weight) for row in x])
        return found if found.shape[1] == self._columns else found[:, : self._columns]

    def _by_panels(self, x: Floats) -> Floats:
        count, _, columns = self._panels[0].shape
        tile = len(x) // -(-len(x) // self.mode.rows)
        rows = x.reshape(1, -1, tile, x.shape[1])
        total = np.empty((len(x), count * columns), np.float32)
        # [panels, tiles, rows of a tile, columns of a panel]: a panel meets all tiles at once.
        view = total.reshape(-1, tile, count, columns).transpose(2, 0, 1, 3)

        def multiply(part: slice) -> None:
            at = 0
            for panels in self._panels:
                inner = slice(at, at + panels.shape[1])
                if self.mode is LANES:
                    lanes = rows[..., inner].swapaxes(2, 3)
                    found = np.matmul(panels[part, None].swapaxes(2, 3), lanes).swapaxes(2, 3)
                    sum_ = np.positive if at == 0 else partial(np.add, view[part])
                    sum_(found, out=view[part])
                elif at == 0:
                    np.matmul(rows[..., inner], panels[part, None], out=view[part])
                else:
                    view[part] += np.matmul(rows[..., inner], panels[part, None])
                at = inner.stop

        self._team.share(multiply, count)
        return total

    def is_invariant(self, mode: MatmulMode) -> bool:
        """Whether rows are independent of each other when computed this way (measured)."""
        inner, outer = self.weight.shape
        # A slice tells how sums are made, as long as it is on the same side of small products.
        columns = _SMALL_PRODUCT // inner // _MULTIPLE * _MULTIPLE + _MULTIPLE
        probe = Linear(self.weight[:, : min(outer, columns)])
        probe.compute(mode, Team())
        rng = np.random.default_rng(0)
        x = rng.standard_normal((_PROBE_ROWS, inner), dtype=np.float32)
        least = mode.counts[0]
        alone = np.concatenate([probe(x[i : i + least]) for i in range(0, _PROBE_ROWS, least)])
        for rows in mode.counts:
            order = rng.integers(0, _PROBE_ROWS, rows)  # every row at any place among any others
            if not np.array_equal(probe(x[order]), alone[order]):
                return False
        return True


def _in_panels(weight: Floats, rows: int, columns: int) -> list[Floats]:
    """[panels, inner, columns] for each range of the inner dimension that keeps products small."""
    inner, outer = weight.shape
    count = -(-inner * rows * columns // _SMALL_PRODUCT)
    cuts = [inner * i // count for i in range(count + 1)]
    return [
        np.ascontiguousarray(weight[a:b].reshape(b - a, outer // columns, columns).swapaxes(0, 1))
        for a, b in itertools.pairwise(cuts)
    ]


def choose_mode(linears: Sequence[Linear], team: Team) -> tuple[MatmulMode, Team]:
    """Give all products of a model the cheapest mode in which each is invariant.

    Returns it, and who shares out the work: `team` for a large model, one thread for others.
    """
    of_shape = {linear.weight.shape: linear for linear in linears}.values()
    modes = [PANELS, EIGHTS]
    if sum(linear.weight.nbytes for linear in linears) > _LARGE_BYTES:
        modes.insert(1, LANES)
    else:
        team = Team()
    usable = (mode for mode in modes if all(x.is_invariant(mode) for x in of_shape))
    chosen = next(usable, SINGLE)
    for linear in linears:
        linear.compute(chosen, team)
    return chosen, team


_lock = threading.Lock()
_holders = 0
_threads_before: list[int] = []


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold BLAS to one thread, in the whole process: that is how BLAS counts its threads.

    The last holder to leave restores what was set before.
    """
    global _holders, _threads_before
    libraries = _libraries()  # looking for them with the lock could block a fork
    with _lock:
        _holders += 1
        if _holders == 1:
            _threads_before = [library.num_threads for library in libraries]
        # Each time: where BLAS runs on OpenMP, every thread has a number of its own.
        _set_threads([1] * len(libraries))
    try:
        yield
    finally:
        with _lock:
            _holders -= 1
            if not _holders:
                _set_threads(_threads_before)


@cache
def _libraries() -> list[Any]:
    found = threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers
    # Others, such as SciPy's, may be loaded too.
    return [library for library in found if "numpy" in library.filepath] or list(found)


def _set_threads(counts: list[int]) -> None:
    # By default only the first thread of a process that sets a number may set others. Cleared
    # afterwards too, so that a limit around this one can still end.
    clear = threadpoolctl.OpenBLASController.clear_controlling_thread
    clear(force=True)
    for library, count in zip(_libraries(), counts, strict=True):
        library.set_num_threads(count)
    clear(force=True)


def _after_fork_in_child() -> None:
    """None of the threads that held BLAS are in the child."""
    global _holders
    if _holders:
        _set_threads(_threads_before)
    _holders = 0
    _lock.release()


os.register_at_fork(
    before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_after_fork_in_child
)


def blas_name() -> str:
    """What numpy's sums depend on beside numpy: "haswell.1thread" while BLAS is held to one.

    The first part is the kind of processor that BLAS computes for (OPENBLAS_CORETYPE).
    """
    if not _libraries():
        return "unknown"
    blas = _libraries()[0]
    core = getattr(blas, "architecture", None) or blas.internal_api
    threads = blas.num_threads
    return f"{core}.{threads}thread{'' if threads == 1 else 's'}".lower()
