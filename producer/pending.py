"""Which of the jobs that are waited for must be looked at, and until when."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from uuid import UUID

from marco_search.errors import WaitTimeout

LOOK_S = 2.0
"""All pending jobs are looked at this often, should word of one have been lost."""


class Pending:
    """The jobs of one wait that have not been seen to end."""

    def __init__(self, job_ids: Iterable[UUID], timeout_s: float | None) -> None:
        if timeout_s is not None and not (isinstance(timeout_s, int | float) and timeout_s >= 0):
            raise TypeError(f"timeout_s must be None or seconds from 0 on, not {timeout_s!r}")
        timeout_s = None if timeout_s is None else min(timeout_s, threading.TIMEOUT_MAX)
        self.ids = dict.fromkeys(job_ids)  # a set that keeps its order
        self.look_at = list(self.ids)  # now
        self._asked = len(self.ids)
        self._timeout_s = timeout_s
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._look_again = time.monotonic() + LOOK_S

    def done(self, job_id: UUID) -> None:
        """This one has ended."""
        self.ids.pop(job_id, None)

    def patience(self) -> float:
        """Seconds to listen before `heard` must be called. Raises WaitTimeout at the deadline."""
        now = time.monotonic()
        if self._deadline is None:
            return max(0.0, self._look_again - now)
        if now >= self._deadline:
            raise WaitTimeout(
                f"{len(self.ids)} of {self._asked} jobs had not ended after {self._timeout_s:g} s; "
                "they go on"
            )
        return max(0.0, min(self._look_again, self._deadline) - now)

    def heard(self, told: Iterable[UUID | None]) -> None:
        """Choose what to look at from what the listener told."""
        told = set(told)
        if None in told or time.monotonic() >= self._look_again:
            self.look_at = list(self.ids)
            self._look_again = time.monotonic() + LOOK_S
        else:
            self.look_at = [job_id for job_id in told if job_id in self.ids]
