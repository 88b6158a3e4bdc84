"""Waiting that ends early on a signal."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable, Iterator
from types import FrameType

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Wakeup:
    """`wait` returns when time is up or a signal has come (its handler has run by then)."""

    def __init__(self) -> None:
        """Make the pipe that signals write to."""
        self._reader, self.writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self.writer, False)

    def wait(self, seconds: float) -> None:
        """Sleep for `seconds` or until a signal comes."""
        select.select([self._reader], [], [], seconds)
        with contextlib.suppress(BlockingIOError):
            os.read(self._reader, 512)

    def close(self) -> None:
        """Close both ends."""
        os.close(self._reader)
        os.close(self.writer)


@contextlib.contextmanager
def on_signals(stop: Callable[[], None]) -> Iterator[Wakeup]:
    """Inside the block, signals that end programs call `stop`, and a child's end wakes up."""

    def handle(number: int, frame: FrameType | None) -> None:
        if number in _STOP_SIGNALS:
            stop()

    wakeup = Wakeup()
    handled = (*_STOP_SIGNALS, signal.SIGCHLD)
    before = {number: signal.signal(number, handle) for number in handled}
    descriptor = signal.set_wakeup_fd(wakeup.writer, warn_on_full_buffer=False)
    try:
        yield wakeup
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, handler in before.items():
            signal.signal(number, handler)
        wakeup.close()
