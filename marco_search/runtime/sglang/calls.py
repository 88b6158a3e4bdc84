"""Requests in flight: each has a deadline and can be cut short from another thread."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator


class Call:
    """One request, with all its retries, until `deadline` (of time.monotonic())."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    @property
    def cancelled(self) -> bool:
        """True once it was cut short."""
        return self._cancelled.is_set()

    @property
    def over(self) -> bool:
        """True when it was cut short or its time is up: do no more for it."""
        return self.cancelled or self.left_s <= 0

    @property
    def left_s(self) -> float:
        """Seconds to the deadline; less than 0 after it."""
        return self.deadline - time.monotonic()

    def wait(self, seconds: float) -> bool:
        """Sleep, at most to the deadline. True if there is time for more."""
        self._cancelled.wait(max(0.0, min(seconds, self.left_s)))
        return not self.over

    def cancel(self) -> None:
        """Cut it short: whoever reads from its connection sees the end of the stream."""
        with self._lock:
            self._cancelled.set()
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def using(self, connection: socket.socket) -> Iterator[None]:
        """Let `cancel` reach this connection inside the block."""
        with self._lock:
            self._socket = connection
            if self.cancelled:
                connection.shutdown(socket.SHUT_RDWR)
        try:
            yield
        finally:
            with self._lock:
                self._socket = None


class InFlight:
    """All calls in flight, and a thread that cuts short those whose deadline has passed.

    The socket's own timeout is not enough: it starts anew with every byte, so a server that
    sends one byte at a time would hold a call for ever.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._calls: set[Call] = set()
        self._watcher: threading.Thread | None = None

    @contextlib.contextmanager
    def call(self, deadline: float) -> Iterator[Call]:
        """A call that is watched inside the block."""
        call = Call(deadline)
        with self._changed:
            self._calls.add(call)
            if self._watcher is None:
                self._watcher = threading.Thread(
                    target=self._watch, name="marco-deadlines", daemon=True
                )
                self._watcher.start()
        try:
            yield call
        finally:
            with self._changed:
                self._calls.discard(call)
                if not self._calls:
                    self._changed.notify()

    def cancel_all(self) -> None:
        """Cut short every call that is in flight now."""
        with self._changed:
            calls = list(self._calls)
        for call in calls:
            call.cancel()

    def _watch(self) -> None:
        # Ends when nothing is in flight; the next call starts another.
        while True:
            with self._changed:
                if not self._calls:
                    self._changed.wait(_IDLE_S)
                if not self._calls:
                    self._watcher = None
                    return
                late = [c for c in self._calls if c.left_s <= 0 and not c.cancelled]
                if not late:
                    self._changed.wait(_LOOK_EVERY_S)
            for call in late:
                call.cancel()


_IDLE_S = 5.0  # how long the watching thread outlives the last call
_LOOK_EVERY_S = 0.25
