"""Who has logged in, and who has tried too often. Kept in memory: a restart ends all sessions."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable

Clock = Callable[[], float]


class Sessions:
    """Sessions by their secret, which only the browser's cookie holds."""

    def __init__(
        self, *, lifetime_s: float = 12 * 3600, most: int = 1000, clock: Clock = time.monotonic
    ) -> None:
        """A session ends after `lifetime_s`; of more than `most` the oldest end early."""
        self.lifetime_s = lifetime_s
        self._most, self._clock = most, clock
        self._ends_at: OrderedDict[str, float] = OrderedDict()  # in the order of their ends

    def begin(self) -> str:
        """A new session's secret."""
        secret = secrets.token_urlsafe(32)
        self._ends_at[secret] = self._clock() + self.lifetime_s
        while len(self._ends_at) > self._most or self._oldest_is_over():
            self._ends_at.popitem(last=False)
        return secret

    def end(self, secret: str) -> None:
        """Forget a session; nothing happens if there is none."""
        self._ends_at.pop(secret, None)

    def __contains__(self, secret: str) -> bool:
        return self._ends_at.get(secret, float("-inf")) > self._clock()

    def _oldest_is_over(self) -> bool:
        return next(iter(self._ends_at.values())) <= self._clock()


class Throttle:
    """Counts wrong tokens by client address; too many in a minute lock that address out of it."""

    def __init__(
        self,
        *,
        tries: int = 10,
        window_s: float = 60.0,
        most: int = 10_000,
        clock: Clock = time.monotonic,
    ) -> None:
        """`tries` wrong tokens in `window_s`; addresses beyond `most` displace the oldest."""
        self.window_s = window_s
        self._tries, self._most, self._clock = tries, most, clock
        self._wrong: OrderedDict[str, tuple[float, int]] = OrderedDict()  # since when, how many

    def blocks(self, address: str) -> bool:
        """Whether this address has to wait."""
        since, count = self._wrong.get(address, (float("-inf"), 0))
        return count >= self._tries and self._clock() < since + self.window_s

    def count_wrong(self, address: str) -> None:
        """Note a wrong token."""
        now = self._clock()
        since, count = self._wrong.pop(address, (now, 0))
        self._wrong[address] = (since, count + 1) if now < since + self.window_s else (now, 1)
        if len(self._wrong) > self._most:
            self._wrong.popitem(last=False)
