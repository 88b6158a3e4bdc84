"""Being told to stop: how the word reaches the searches, wherever they are in their work.

Celery's signal handlers run in the parent, the searches in its children. Both see one number
in shared memory: the time (CLOCK_MONOTONIC, the same for all processes) until which a round
may still be finished. Zero: nobody was told to stop. A child may be told alone as well: by
Celery's time limit (SIGUSR1), or by SIGTERM where a service manager signals every process.
"""

from __future__ import annotations

import mmap
import os
import signal
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Anonymous and shared: made before the fork, the children see what the parent writes.
_TOLD = mmap.mmap(-1, 8)
_alone = 0.0  # the same for this process only
_limited = False  # by a time limit


def tell(within_s: float) -> None:
    """Tell this process and its children: rounds may go on for `within_s` seconds at most.

    Told again, the earlier end counts. Safe in a signal handler.
    """
    until = _earlier(_read(), time.monotonic() + within_s)
    struct.pack_into("d", _TOLD, 0, until)


def left_s() -> float | None:
    """Seconds that a round may still take (0: none); None: nobody was told to stop."""
    until = _earlier(_read(), _alone)
    return max(0.0, until - time.monotonic()) if until else None


def overdue_s() -> float:
    """Seconds since the time of the whole worker to stop was over; 0: it is not."""
    until = _read()
    return max(0.0, time.monotonic() - until) if until else 0.0


def time_is_up() -> bool:
    """True if nobody stops the worker: only this job's time is up."""
    return _limited and not _read()


@contextmanager
def kept_from_dying(within_s: float) -> Iterator[None]:
    """SIGTERM and SIGUSR1 inside the block stop the search in order, not the process.

    A SIGTERM counts when the block is left: then the process ends as it would have.
    """
    terminated = False

    def told(number: int, frame: FrameType | None) -> None:
        nonlocal terminated
        global _alone, _limited
        terminated = terminated or number == signal.SIGTERM
        _limited = not terminated
        _alone = _earlier(_alone, time.monotonic() + within_s)

    before = {number: signal.signal(number, told) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        global _alone, _limited
        _alone, _limited = 0.0, False
        for number, handler in before.items():
            signal.signal(number, handler)
        if terminated:
            os.kill(os.getpid(), signal.SIGTERM)


def _read() -> float:
    until: float = struct.unpack_from("d", _TOLD, 0)[0]
    return until


def _earlier(one: float, other: float) -> float:
    return min(one, other) if one and other else one or other
