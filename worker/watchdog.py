"""Kills children that hang, so that they are replaced, and a worker that does not stop.

A child's heartbeat notes in shared memory when it last made progress. One that has been silent
for longer than a lease has already lost its job. Children still running when the time to stop is
over are killed as well: their jobs continue elsewhere, from their stored rounds.
"""

import contextlib
import logging
import mmap
import os
import signal
import struct
import time
from collections.abc import Callable, Collection, Iterator
from threading import Thread

from billiard import current_process

from worker.shutdown import Shutdown

log = logging.getLogger(__name__)

SILENT_S = 20.0
"""Seconds of silence allowed beyond a lease: more than a statement of Postgres may take."""
STOP_MARGIN_S = 3.0
"""Children are killed this long after the time to stop is over, the worker 2 s later."""
_POLL_S = 0.5
_SLOTS = 1024  # more than a pool has children
_SLOT = struct.Struct("qd")  # process id; time.monotonic() of its last progress, 0 without a job

# Anonymous and shared: made before the fork. A child writes to the slot of its number only.
_PROGRESS = mmap.mmap(-1, _SLOTS * _SLOT.size)


def progress() -> None:
    """Note that this process makes progress with its job."""
    _write(time.monotonic())


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """During the block this process must make progress, or is killed."""
    progress()
    try:
        yield
    finally:
        _write(0.0)


@contextlib.contextmanager
def unwatched() -> Iterator[None]:
    """The block may take any time: loading a model."""
    _write(0.0)
    try:
        yield
    finally:
        progress()


def _write(at: float) -> None:
    slot = getattr(current_process(), "index", None)
    if slot is not None and slot < _SLOTS:  # otherwise not a child of a pool
        _SLOT.pack_into(_PROGRESS, slot * _SLOT.size, os.getpid(), at)


def start(children: Callable[[], list[int]], silent_s: float, shutdown: Shutdown) -> None:
    """Watch in a thread of the worker's main process; `children` gives the pool's process ids."""

    def watch() -> None:
        polled = time.monotonic()
        while shutdown.overdue_s <= STOP_MARGIN_S:
            time.sleep(_POLL_S)
            now = time.monotonic()
            if now - polled < 10 * _POLL_S:  # else this process, too, was suspended
                _kill_silent(children(), now, silent_s)
            polled = now
        if running := children():
            log.error("killing processes that do not stop: %s", running)
            _kill(running)
        time.sleep(2.0)
        log.error("this worker does not stop: exiting")
        _kill(children())
        os._exit(1)

    Thread(target=watch, name="marco-watchdog", daemon=True).start()


def _kill_silent(children: Collection[int], now: float, silent_s: float) -> None:
    for pid, at in _SLOT.iter_unpack(_PROGRESS[:]):
        if at and pid in children and now - at > silent_s:
            log.error("process %d hangs: killed after %.0f s without progress", pid, now - at)
            _kill([pid])


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
