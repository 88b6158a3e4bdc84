"""One answer for all tabs: pages that refresh themselves share what is read.

A page that is opened is read at once. One that refreshes gets what was read less than a
second ago; anything newer is read for one of them a second, however many there are, and the
others get what is there (or nothing, and keep what they show).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import TypeVar, cast

T = TypeVar("T")


class Shared:
    """What was read last, by key. Shared by threads."""

    def __init__(
        self,
        *,
        every_s: float = 1.0,
        kept: int = 64,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`kept`: answers kept at most."""
        self._every_s, self._kept, self._clock = every_s, kept, clock
        self._lock = Lock()
        self._found: OrderedDict[Hashable, tuple[float, object]] = OrderedDict()
        self._last_refresh = float("-inf")

    def get(self, key: Hashable, read: Callable[[], T], *, refresh: bool = False) -> T | None:
        """What `read` gives or gave. None only for a refresh that has to wait its turn."""
        with self._lock:
            now = self._clock()
            at, value = self._found.get(key, (float("-inf"), None))
            if now - at < self._every_s:
                return cast("T", value)
            if refresh:
                if now - self._last_refresh < self._every_s:
                    return cast("T | None", value)
                self._last_refresh = now
        fresh = read()
        with self._lock:
            self._found[key] = self._clock(), fresh
            self._found.move_to_end(key)
            while len(self._found) > self._kept:
                self._found.popitem(last=False)
        return fresh
