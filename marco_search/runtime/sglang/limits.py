"""How many branches may be in flight to one server: found by trying.

Additive increase, multiplicative decrease (as in TCP): every window of answers in good time
allows one more, an answer of "too many" or one that took too long halves the allowance. Every
worker process keeps its own; processes that share a server find their shares like TCP streams.
"""

from __future__ import annotations

import threading
import time

from marco_search.runtime.sglang.calls import Call

_BACK_OFF = 0.5
_LOOK_EVERY_S = 0.25  # how soon a waiting call notices that it was cut short


class Limiter:
    """Allows `limit` calls at once, between 1 and `most`. Begins with `most`."""

    def __init__(self, most: int, slow_s: float) -> None:
        """`slow_s`: an answer that took longer than this says that the server is overloaded."""
        self._most = float(most)
        self._slow_s = slow_s
        self._limit = float(most)
        self._free = threading.Condition()
        self._in_flight = 0
        self._reduced_at = float("-inf")

    @property
    def limit(self) -> int:
        """Calls allowed at once."""
        return int(self._limit)

    @property
    def in_flight(self) -> int:
        """Calls now in flight."""
        return self._in_flight

    def acquire(self, call: Call) -> bool:
        """Wait for a place. False if the call was cut short or its time was up first."""
        with self._free:
            while self._in_flight >= self.limit and not call.over:
                self._free.wait(min(_LOOK_EVERY_S, max(call.left_s, 0.001)))
            if call.over:
                return False
            self._in_flight += 1
            return True

    def release(self, began: float, *, ok: bool, busy: bool) -> None:
        """Give the place back. `began`: when the call did, on time.monotonic().

        `busy`: the server said that it has too much to do. A failure of another kind says
        nothing about its load.
        """
        now = time.monotonic()
        with self._free:
            full = self._in_flight >= self.limit
            self._in_flight -= 1
            if busy or now - began > self._slow_s:
                # Calls that were on their way at the last reduction tell nothing new.
                if began > self._reduced_at:
                    self._limit = max(1.0, self._limit * _BACK_OFF)
                    self._reduced_at = now
            elif ok and full:
                self._limit = min(self._most, self._limit + 1 / self._limit)
            self._free.notify_all()
