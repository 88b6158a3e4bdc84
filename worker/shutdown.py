"""Shutdown: how the request reaches running searches.

Celery's signal handlers run in the parent, the searches in its children. Both see one number
in shared memory: the time (CLOCK_MONOTONIC, the same for all processes) until which a round
may still be finished. Zero: no shutdown was requested. A single child may also be stopped: by
Celery's time limit (SIGUSR1), or by SIGTERM where a service manager signals every process.
"""

import mmap
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_double
from types import FrameType


class Shutdown:
    """The deadline of running rounds. Shared with processes forked after it was created."""

    def __init__(self) -> None:
        self._shared_deadline = c_double.from_buffer(mmap.mmap(-1, 8))  # anonymous and shared
        self._own_deadline = 0.0  # of this process only
        self._time_limit = False  # is what set it

    def request(self, within_s: float) -> None:
        """Stop this process and its children: rounds may continue for `within_s` seconds at most.

        Of several requests the earliest deadline counts. Safe in a signal handler.
        """
        deadline = time.monotonic() + within_s
        self._shared_deadline.value = _earlier(self._shared_deadline.value, deadline)

    @property
    def seconds_left(self) -> float | None:
        """Seconds left for the current round; None: no shutdown was requested."""
        deadline = _earlier(self._shared_deadline.value, self._own_deadline)
        return max(0.0, deadline - time.monotonic()) if deadline else None

    @property
    def overdue_s(self) -> float:
        """Seconds since the whole worker should have stopped; 0: not yet."""
        deadline = self._shared_deadline.value
        return max(0.0, time.monotonic() - deadline) if deadline else 0.0

    @property
    def soft_time_limit_reached(self) -> bool:
        """True if only this job must stop, because it reached Celery's soft time limit."""
        return self._time_limit and not self._shared_deadline.value

    @contextmanager
    def deferred_signals(self, within_s: float) -> Iterator[None]:
        """SIGTERM and SIGUSR1 during the block stop the search cleanly, not the process.

        A SIGTERM takes effect when the block is left.
        """
        terminated = False

        def handle(number: int, frame: FrameType | None) -> None:
            nonlocal terminated
            terminated = terminated or number == signal.SIGTERM
            self._time_limit = not terminated
            self._own_deadline = _earlier(self._own_deadline, time.monotonic() + within_s)

        before = {n: signal.signal(n, handle) for n in (signal.SIGTERM, signal.SIGUSR1)}
        try:
            yield
        finally:
            self._own_deadline, self._time_limit = 0.0, False
            for number, handler in before.items():
                signal.signal(number, handler)
            if terminated:
                os.kill(os.getpid(), signal.SIGTERM)


def _earlier(one: float, other: float) -> float:
    return min(one, other) if one and other else one or other
