"""The heartbeat that keeps a job leased while it is searched, and learns when to stop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from threading import Event, Thread
from typing import Self

from marco_search.errors import DatabaseUnavailable, LeaseLost
from marco_search.search.budgets import StopReason
from marco_search.store.db import Conn, Database
from marco_search.store.queue import leases
from marco_search.store.queue.leases import JobSignals, Lease
from worker import watchdog
from worker.shutdown import Shutdown

log = logging.getLogger(__name__)

POLL_S = 1.0
"""A cancel, a pause, a deadline or a lost lease is noticed within this time."""
_TICK_S = 0.2  # a shutdown of this worker, which needs no query

Read = Callable[[Conn, Lease], JobSignals]


class Heartbeat:
    """A thread that extends a lease inside its `with` block, and knows why to stop.

    `on_abort` is called from that thread, at every tick, once what is in flight has become
    useless: the job was cancelled or has expired, the lease is lost, or the worker's time to
    shut down is over. `extend` and `poll` read the job's signals, the first extends the lease.
    """

    def __init__(
        self,
        database: Database,
        lease: Lease,
        *,
        every_s: float,
        shutdown: Shutdown | None = None,
        on_abort: Callable[[], None] = lambda: None,
        extend: Read = leases.heartbeat,
        poll: Read = leases.poll,
    ) -> None:
        self.lease = lease
        self.signals = JobSignals()
        self._database = database
        self._every_s = every_s
        self._shutdown = shutdown or Shutdown()
        self._on_abort = on_abort
        self._extend, self._poll = extend, poll
        self._lost = False
        self._failing = False
        self._stop = Event()
        self._thread = Thread(target=self._run, name=f"lease-{lease.job_id}", daemon=True)

    def check(self) -> None:
        """Raises LeaseLost once the lease is known to be lost."""
        if self._lost:
            raise leases.lost(self.lease)

    def reason(self) -> StopReason | None:
        """Why the search should end before its next round, if it should."""
        if self.signals.cancelled:
            return StopReason.CANCELLED
        if self.signals.expired:
            return StopReason.DEADLINE
        if self.signals.paused or self._shutdown.seconds_left is not None:
            return StopReason.RELEASED
        return None

    @property
    def should_abort(self) -> bool:
        """True if a round that is not stored yet should not be waited for."""
        useless = self._lost or self.signals.cancelled or self.signals.expired
        return useless or self._shutdown.seconds_left == 0.0

    def _run(self) -> None:
        poll_s = min(POLL_S, self._every_s)
        extend_at = time.monotonic() + self._every_s
        poll_at = time.monotonic() + poll_s
        while not self._stop.wait(min(_TICK_S, self._every_s)):
            watchdog.progress()
            if time.monotonic() >= poll_at and not self._lost:
                extends = time.monotonic() >= extend_at
                # An extension that failed is tried again at the next poll.
                if self._read(self._extend if extends else self._poll) and extends:
                    extend_at = time.monotonic() + self._every_s
                poll_at = time.monotonic() + poll_s
            if self.should_abort:
                # At every tick: a round may just have been about to begin.
                try:
                    self._on_abort()
                except Exception:
                    log.exception("job %s: aborting its round failed", self.lease.job_id)

    def _read(self, read: Read) -> bool:
        """Read the job's signals; False if Postgres does not answer."""
        try:
            with self._database.transaction() as conn:
                self.signals = read(conn, self.lease)
        except LeaseLost:
            self._lost = True
        except Exception as error:
            # Whatever it is: without this thread a cancel or a lost lease would go unnoticed.
            # The search goes on: whether another worker has the job will be seen when Postgres
            # is back, and until then no round can be stored.
            if not self._failing:
                bug = None if isinstance(error, DatabaseUnavailable) else error
                log.warning("job %s: no heartbeat: %s", self.lease.job_id, error, exc_info=bug)
            self._failing = True
            return False
        self._failing = False
        return True

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
