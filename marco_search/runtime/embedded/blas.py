"""One BLAS thread while this process decodes, whoever loaded numpy and with what settings.

More threads gain the engine little, cost other processes much, and sum in another order, which
changes the last digits of every log-prob.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import threadpoolctl

assert np, "its BLAS has to be loaded to be found"


class _Limit:
    """The limit and how many hold it. BLAS has one number of threads for the whole process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0
        self._before: list[int] = []
        os.register_at_fork(
            before=self._lock.acquire,
            after_in_parent=self._lock.release,
            after_in_child=self._start_over,
        )

    def acquire(self) -> None:
        libraries = _libraries()  # looking for them with the lock could block a fork
        with self._lock:
            self._holders += 1
            if self._holders == 1:
                self._before = [library.num_threads for library in libraries]
            # Each time: where BLAS runs on OpenMP, every thread has a number of its own.
            _set_threads([1] * len(self._before))

    def release(self) -> None:
        with self._lock:
            self._holders -= 1
            if not self._holders:
                _set_threads(self._before)

    def _start_over(self) -> None:
        # None of the threads that held it are in the child.
        if self._holders:
            _set_threads(self._before)
        self._holders = 0
        self._lock.release()


@cache
def _libraries() -> list[Any]:
    found = threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers
    # Others, such as SciPy's, may be loaded too.
    return [library for library in found if "numpy" in library.filepath] or list(found)


def _set_threads(counts: list[int]) -> None:
    # By default only the first thread of a process that sets a number may set others. Let go of
    # it afterwards, so that a limit around this one can still end.
    clear = threadpoolctl.OpenBLASController.clear_controlling_thread
    clear(force=True)
    for library, count in zip(_libraries(), counts, strict=True):
        library.set_num_threads(count)
    clear(force=True)


_limit = _Limit()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold BLAS to one thread; the last holder to leave restores what was set before.

    The whole process is held to it meanwhile: that is how BLAS counts its threads.
    """
    _limit.acquire()
    try:
        yield
    finally:
        _limit.release()


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
