"""Requests in flight: each has a deadline, can be cut short, and waits for a place."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

from marco_search.errors import BranchFailed
from marco_search.runtime.sglang.failures import Failure

_IDLE_S = 5.0  # how long the watching thread outlives the last call
_POLL_S = 0.25
_BACK_OFF = 0.5


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

    def cut_short(self) -> Failure:
        """What became of it, once it is over."""
        late = self.left_s <= 0
        message = "no answer before the branch's deadline" if late else "aborted"
        return Failure(kind=BranchFailed, message=message)

    def wait(self, seconds: float) -> bool:
        """Sleep, at most to the deadline. True if there is time for more."""
        self._cancelled.wait(max(0.0, min(seconds, self.left_s)))
        return not self.over

    def cancel(self) -> None:
        """Cut it short: a thread that reads from its connection sees the end of the stream."""
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

    The socket's own timeout is not enough: it starts again with every byte, so a server that
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
                if not self._changed.wait_for(lambda: self._calls, _IDLE_S):
                    self._watcher = None
                    return
                late = [call for call in self._calls if call.left_s <= 0 and not call.cancelled]
                if not late:
                    self._changed.wait(_POLL_S)
            for call in late:
                call.cancel()


class Limiter:
    """Allows `limit` calls at once, between 1 and `most`, and begins with `most`.

    Additive increase, multiplicative decrease (as in TCP): every window of answers in good time
    allows one more, an answer of "too many" or one that took too long halves the allowance.
    Every worker process keeps its own; processes that share a server find their shares like TCP
    streams.
    """

    def __init__(self, most: int, slow_s: float) -> None:
        """`slow_s`: an answer that took longer than this says that the server is overloaded."""
        self._most = float(most)
        self._slow_s = slow_s
        self._limit = float(most)
        self._free = threading.Condition()
        self.in_flight = 0
        self._reduced_at = float("-inf")

    @property
    def limit(self) -> int:
        """Calls allowed at once."""
        return int(self._limit)

    def acquire(self, call: Call) -> bool:
        """Wait for a place. False if the call was cut short or its time was up first."""
        with self._free:
            while self.in_flight >= self.limit and not call.over:
                self._free.wait(min(_POLL_S, max(call.left_s, 0.001)))
            if call.over:
                return False
            self.in_flight += 1
            return True

    def release(self, began: float, *, ok: bool, overloaded: bool) -> None:
        """Give the place back. `began`: when the call did, on time.monotonic().

        `overloaded`: the server answered that it is. A failure of another kind says nothing
        about its load.
        """
        now = time.monotonic()
        with self._free:
            full = self.in_flight >= self.limit
            self.in_flight -= 1
            if overloaded or now - began > self._slow_s:
                # Calls that were on their way at the last reduction tell nothing new.
                if began > self._reduced_at:
                    self._limit = max(1.0, self._limit * _BACK_OFF)
                    self._reduced_at = now
            elif ok and full:
                self._limit = min(self._most, self._limit + 1 / self._limit)
            self._free.notify_all()
