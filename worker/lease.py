"""The heartbeat that keeps a job ours while it is searched."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from threading import Event, Thread
from types import TracebackType
from typing import Self

from marco_search.errors import DatabaseUnavailable, LeaseLost
from marco_search.store import leases
from marco_search.store.connect import Database
from marco_search.store.leases import Lease

log = logging.getLogger(__name__)


class Heartbeat:
    """A thread that extends a lease inside its `with` block, and knows if it was lost.

    `on_end` is called from that thread, and again at every beat, once the search is to end:
    the job was cancelled or the lease is lost.
    """

    def __init__(
        self,
        database: Database,
        lease: Lease,
        *,
        every_s: float,
        cancel_requested: bool,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self.lease = lease
        self.cancel_requested = cancel_requested
        self._database = database
        self._every_s = every_s
        self._on_end = on_end
        self._lost = False
        self._stop = Event()
        self._thread = Thread(target=self._run, name=f"lease-{lease.job_id}", daemon=True)

    def check(self) -> None:
        """Raises LeaseLost once the lease is known to be lost."""
        if self._lost:
            raise leases.lost(self.lease)

    def _run(self) -> None:
        held_until = time.monotonic() + self.lease.seconds
        while not self._stop.wait(self._every_s):
            if not self._lost:
                held_until = self._beat(held_until)
            if self._lost or self.cancel_requested:
                # At every beat: a round may just have been about to begin.
                self._on_end()

    def _beat(self, held_until: float) -> float:
        """Extend the lease; until when it is surely held, on time.monotonic()."""
        asked = time.monotonic()
        try:
            with self._database.transaction() as conn:
                if leases.heartbeat(conn, self.lease):
                    self.cancel_requested = True
            return asked + self.lease.seconds
        except LeaseLost:
            self._lost = True
        except DatabaseUnavailable as error:
            log.warning("job %s: no heartbeat: %s", self.lease.job_id, error)
            # Another worker may have claimed it by now, and will write the same rounds.
            if time.monotonic() >= held_until:
                self._lost = True
        return held_until

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
