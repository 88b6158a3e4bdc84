"""The heartbeat that keeps a job ours while it is searched, and hears when to stop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from threading import Event, Thread
from types import TracebackType
from typing import Self

from marco_search.errors import DatabaseUnavailable, LeaseLost
from marco_search.search.budgets import StopReason
from marco_search.store.db import Database
from marco_search.store.queue import leases
from marco_search.store.queue.leases import Lease, Watch
from worker import watchdog

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""A cancel, a pause, a deadline or a lost lease is seen within this time."""
_TICK_S = 0.2  # word to stop that comes from this machine; asks nobody


class Heartbeat:
    """A thread that extends a lease inside its `with` block, and knows why to stop.

    `on_end` is called from that thread, again and again, once what is in flight has become
    useless: the job was cancelled or has expired, the lease is lost, or the time that the
    worker has to stop (`left_s`, see worker.stopping) is over.
    """

    def __init__(
        self,
        database: Database,
        lease: Lease,
        *,
        every_s: float,
        left_s: Callable[[], float | None] = lambda: None,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self.lease = lease
        self.watch = Watch(cancelled=False, expired=False, paused=False)
        self._database = database
        self._every_s = every_s
        self._left_s = left_s
        self._on_end = on_end
        self._lost = False
        self._away = False  # Postgres
        self._stop = Event()
        self._thread = Thread(target=self._run, name=f"lease-{lease.job_id}", daemon=True)

    def check(self) -> None:
        """Raises LeaseLost once the lease is known to be lost."""
        if self._lost:
            raise leases.lost(self.lease)

    def reason(self) -> StopReason | None:
        """Why the search should end before its next round, if it should."""
        if self.watch.cancelled:
            return StopReason.CANCELLED
        if self.watch.expired:
            return StopReason.DEADLINE
        if self.watch.paused or self.stopping:
            return StopReason.RELEASED
        return None

    @property
    def stopping(self) -> bool:
        """True once the worker was told to stop."""
        return self._left_s() is not None

    @property
    def in_vain(self) -> bool:
        """True if a round that is not kept yet should not be waited for."""
        return self._lost or self.watch.cancelled or self.watch.expired or self._left_s() == 0.0

    def _run(self) -> None:
        look_s = min(LOOK_S, self._every_s)
        beat_at = time.monotonic() + self._every_s
        look_at = time.monotonic() + look_s
        while not self._stop.wait(min(_TICK_S, self._every_s)):
            watchdog.progress()
            if time.monotonic() >= look_at and not self._lost:
                beats = time.monotonic() >= beat_at
                # An extension that failed is tried again at the next look.
                if self._ask(extend=beats) and beats:
                    beat_at = time.monotonic() + self._every_s
                look_at = time.monotonic() + look_s
            if self.in_vain:
                # At every tick: a round may just have been about to begin.
                try:
                    self._on_end()
                except Exception:
                    log.exception("job %s: what is in flight was not ended", self.lease.job_id)

    def _ask(self, *, extend: bool) -> bool:
        """Look at the job, and extend the lease; False if Postgres does not answer."""
        try:
            with self._database.transaction() as conn:
                ask = leases.heartbeat if extend else leases.look
                self.watch = ask(conn, self.lease)
        except LeaseLost:
            self._lost = True
        except DatabaseUnavailable as error:
            # Nothing is given up: nobody can take the job meanwhile, and whether somebody
            # has will be seen when Postgres is back. Until then no round can be kept.
            if not self._away:
                log.warning("job %s: no heartbeat: %s", self.lease.job_id, error)
            self._away = True
            return False
        except Exception:
            # Whatever it is: without this thread nobody would hear of a cancel or a lost lease.
            if not self._away:
                log.exception("job %s: no heartbeat", self.lease.job_id)
            self._away = True
            return False
        self._away = False
        return True

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
