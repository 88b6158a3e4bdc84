"""Looks after jobs that nobody is looking after. `marco scheduler` and every worker sweep.

- publishes what became due (back-off, reclaimed, Redis was down) and what Redis forgot
- takes jobs back from workers that are gone (store.reclaim)
- ends jobs whose deadline has passed, and queued ones with answers that were cancelled
- makes the trail's next months (store.partitions)

Each step is a transaction that skips rows others hold: sweeps may run at once, and one that
dies leaves nothing half done. However many sweep, Redis lets one look each second; on an idle
database a look is one statement.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from threading import Event, Thread
from uuid import UUID

from marco_search.broker import Publisher
from marco_search.errors import BrokerUnavailable, MarcoError, SchemaMismatch
from marco_search.settings import Settings
from marco_search.store.db import Database
from marco_search.store.queue import deadlines, outbox, reclaim
from marco_search.store.queue.leases import Worker
from marco_search.store.trail import partitions
from worker import closing

log = logging.getLogger(__name__)

EVERY_S = 1.0
PARTITIONS_EVERY_S = 3600.0
_STOP_S = 5.0
PARKED_EVERY_S = 30.0
"""A message is sent this often for each model that jobs wait for: a worker may have it again."""
FORGOTTEN_AFTER_S = 5.0
"""A job published this long ago whose queue is empty has lost its message."""


class Sweep:
    """Sweeps with these connections. `worker` is who ends jobs that need an answer."""

    def __init__(
        self, settings: Settings, database: Database, publisher: Publisher, worker: Worker
    ) -> None:
        self._settings = settings
        self._database = database
        self._publisher = publisher
        self._worker = worker
        self._next_parked = time.monotonic() + PARKED_EVERY_S

    def once(self) -> int:
        """One sweep; the number of jobs published.

        Raises DatabaseUnavailable or BrokerUnavailable, the latter only after all is done
        that needs no broker.
        """
        with self._database.transaction() as conn:
            seen = outbox.pulse(conn, FORGOTTEN_AFTER_S)
        if seen.lost:
            self._reclaim()
        if seen.expired:
            self._expire()
        published = 0
        if seen.due or seen.lost:
            published += self._publish(outbox.due)
        if seen.waiting and self._publisher.length() == 0:
            count = self._publish(lambda conn: outbox.forgotten(conn, FORGOTTEN_AFTER_S))
            if count:
                log.warning("%d jobs were published, but their messages were lost", count)
            published += count
        if time.monotonic() >= self._next_parked:
            self._next_parked += PARKED_EVERY_S
            with self._database.transaction() as conn:
                parked = outbox.parked(conn)
            self._publisher.publish(parked)
        return published

    def ensure_partitions(self) -> None:
        """Make the trail's next months, long before they begin. Raises DatabaseUnavailable."""
        with self._database.transaction() as conn:
            made = partitions.ensure(conn)
        if made:
            log.info("made partitions: %s", ", ".join(made))

    def may_look(self) -> bool:
        """Whether it is our turn. Raises BrokerUnavailable: then everybody looks."""
        return self._publisher.try_acquire_tick(EVERY_S)

    def close(self) -> None:
        """Close the connections."""
        self._publisher.close()
        self._database.close()

    def _reclaim(self) -> None:
        with self._database.transaction() as conn:
            found = reclaim.reclaim(
                conn,
                quarantine_after=self._settings.quarantine_after,
                # Time for workers to extend their leases after Postgres was down.
                grace_s=self._settings.lease_s / 3,
            )
        for job_id in found.queued:
            log.warning("job %s: its worker is gone, another goes on", job_id)
        for job_id in found.quarantined:
            log.error("job %s: it cost several workers and is dead now", job_id)

    def _expire(self) -> None:
        with self._database.transaction() as conn:
            count = deadlines.expire_unbegun(conn)
        if count:
            log.info("%d jobs expired before they were begun", count)
        while closing.close_one_expired(self._database, self._worker):
            pass

    def _publish(self, choose: Callable[..., Sequence[UUID]]) -> int:
        # Marked and committed before: a worker skips rows that are locked.
        self._publisher.length()  # raises before anything is written, if Redis is down
        with self._database.transaction() as conn:
            job_ids = choose(conn)
        if not job_ids:
            return 0
        try:
            self._publisher.publish(job_ids)
        except BrokerUnavailable:
            with self._database.transaction() as conn:
                outbox.unpublished(conn, job_ids)
            raise
        with self._database.transaction() as conn:
            outbox.log_published(conn, job_ids)
        return len(job_ids)


class Sweeper:
    """Sweeps about once a second until stopped. `connect` is called once, where it runs.

    `on_mismatch` is called when the database was migrated: this version must not go on then.
    """

    def __init__(
        self,
        connect: Callable[[], Sweep],
        on_mismatch: Callable[[SchemaMismatch], None] = lambda error: None,
    ) -> None:
        self._connect = connect
        self._on_mismatch = on_mismatch
        self._stop = Event()
        self._thread = Thread(target=self.run, name="marco-sweep", daemon=True)
        self._trouble = ""

    def start(self) -> None:
        """Begin, in a thread."""
        self._thread.start()

    def ask_to_stop(self) -> None:
        """`run` returns after the sweep in progress. Safe in a signal handler."""
        self._stop.set()

    def stop(self) -> None:
        """End the thread after the sweep in progress; one that hangs is left behind."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_S)

    def run(self) -> None:
        """Sweep until stopped, or until the database was migrated."""
        sweep = self._connect()
        next_month_look = time.monotonic()
        try:
            # Spread, so that those started together do not ask together.
            while not self._stop.wait(EVERY_S * random.uniform(0.8, 1.2)):
                try:
                    if time.monotonic() >= next_month_look:
                        next_month_look += PARTITIONS_EVERY_S
                        sweep.ensure_partitions()
                    self._sweep(sweep)
                except SchemaMismatch as error:
                    log.error("no more sweeps: %s", error)
                    self._on_mismatch(error)
                    return
                except MarcoError as error:
                    self._say(error)
                except Exception:
                    # A worker that no longer sweeps would go unnoticed.
                    log.exception("sweep")
        finally:
            sweep.close()

    def _sweep(self, sweep: Sweep) -> None:
        away = False
        try:
            turn = sweep.may_look()
        except BrokerUnavailable as error:
            self._say(error)
            turn = away = True
        if turn:
            sweep.once()
        if self._trouble and not away:
            log.info("sweeping again")
            self._trouble = ""

    def _say(self, error: MarcoError) -> None:
        # Once for each trouble, not once a second.
        if type(error).__name__ != self._trouble:
            log.warning("sweep: %s", error)
        self._trouble = type(error).__name__
