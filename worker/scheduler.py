"""The scheduler: looks after waiting jobs. Run by `marco scheduler` and by workers.

- publishes jobs that became due (back-off, reclaimed, Redis was down) or whose message was lost
- reclaims jobs of lost workers (store.queue.recovery)
- ends jobs past their deadline, and queued ones with answers that were cancelled
- creates the trail's next monthly partitions (store.trail.partitions)
- marks batches that have ended, and sends webhook deliveries (worker.sender, in threads)

Each step is a transaction that skips rows locked by others: any number of schedulers may run at
once, and one that dies leaves nothing half done. Redis admits one tick a second; on an idle
database a tick is three statements.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from threading import Event
from types import FrameType
from typing import TYPE_CHECKING
from uuid import UUID

from marco_search import logs, metrics
from marco_search.broker import Publisher
from marco_search.errors import BrokerUnavailable, MarcoError, SchemaMismatch
from marco_search.locations import database_url, redis_url
from marco_search.settings import Settings
from marco_search.store import uploaded_files
from marco_search.store.db import Conn, Database
from marco_search.store.queue import batches, recovery, scheduling, webhooks
from marco_search.store.queue.leases import Worker
from marco_search.store.trail import partitions
from worker import finish, process
from worker.sender import Sender

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

log = logging.getLogger(__name__)

EVERY_S = 1.0
SELDOM_S = 3600.0
STALE_S = 5.0
"""A job published this long ago whose queue is empty has lost its message."""
_PARKED_EVERY_S = 30.0  # a message for each model that jobs wait for, in case a worker has it again
STOP_S = 5
"""How long the tick in progress may take when the scheduler is stopped."""


class Scheduler:
    """Ticks about once a second until stopped, on connections of its own.

    `worker` ends jobs whose answers must be ranked.
    """

    def __init__(self, settings: Settings, worker: Worker, *, stale_s: float = STALE_S) -> None:
        self._settings = settings
        self._database = Database(
            database_url(settings), application="marco scheduler", connections=1
        )
        self._publisher = Publisher(redis_url(settings), settings.queue)
        self._worker = worker
        self._sender = Sender(
            settings,
            Database(database_url(settings), application="marco webhooks", connections=2),
        )
        self._stale_s = stale_s
        self._left = set[UUID]()  # jobs to be ended that another version started
        self._next_parked = time.monotonic() + _PARKED_EVERY_S
        self._next_seldom = time.monotonic()
        self._stop = Event()
        self._failure = ""

    def request_stop(self) -> None:
        """`run` returns after the tick in progress. Safe in a signal handler."""
        self._stop.set()

    def run(self) -> None:
        """Tick until stopped, then close.

        Raises SchemaMismatch if the database was migrated: this version must then stop.
        """
        with closing(self):
            # Randomised, so that schedulers started together do not query together.
            while not self._stop.wait(EVERY_S * random.uniform(0.8, 1.2)):
                try:
                    self._tick_in_turn()
                except SchemaMismatch:
                    raise
                except MarcoError as error:
                    # Once for each kind of error, not once a second.
                    if type(error).__name__ != self._failure:
                        log.warning("scheduler: %s", error)
                    self._failure = type(error).__name__
                except Exception:
                    # A worker that no longer schedules would go unnoticed.
                    log.exception("scheduler")

    def _tick_in_turn(self) -> None:
        if time.monotonic() >= self._next_seldom:
            self._next_seldom += SELDOM_S
            if made := self._database.call(partitions.ensure):  # long before they start
                log.info("made partitions: %s", ", ".join(made))
            while self._database.call(uploaded_files.delete_expired):
                pass
            self._database.call(webhooks.forget)
        try:
            turn = self._publisher.try_acquire_tick(EVERY_S)
        except BrokerUnavailable:
            self.tick()  # as every scheduler does then
            raise
        if turn:
            self.tick()
        process.healthy(self._settings)
        if self._failure:
            log.info("scheduling again")
            self._failure = ""

    def tick(self) -> int:
        """Do all due work; the number of jobs published.

        Raises DatabaseUnavailable or BrokerUnavailable, the latter only after everything that
        needs no broker is done.
        """
        with self._database.transaction() as conn:
            pending = scheduling.poll_pending(conn, self._stale_s)
            if pending.batches:
                batches.mark_finished(conn)
            due = webhooks.due(conn)
        self._sender.send(due)
        if pending.lost:
            self._reclaim()
        try:
            if pending.ending:
                self._finish()
        finally:  # a job that can't be ended now must not keep others waiting
            published = self._publish_pending(pending)
        return published

    def workers(self) -> list[str] | None:
        """Names of the workers that announced themselves lately; None: Redis does not respond."""
        try:
            return self._publisher.workers()
        except BrokerUnavailable:
            return None

    def close(self) -> None:
        """Close the connections."""
        self._sender.close()
        self._publisher.close()
        self._database.close()

    def _reclaim(self) -> None:
        with self._database.transaction() as conn:
            found = recovery.reclaim(
                conn,
                quarantine_after=self._settings.quarantine_after,
                # Gives workers time to extend their leases after Postgres was down.
                grace_s=self._settings.lease_s / 3,
            )
        metrics.record(metrics.RECLAIMED, len(found.queued) + len(found.quarantined))
        for job_id in found.queued:
            with logs.about(job=job_id):
                log.warning("job %s: its worker was lost, another one continues it", job_id)
        for job_id in found.quarantined:
            with logs.about(job=job_id):
                log.error("job %s: it crashed several workers and is dead now", job_id)

    def _finish(self) -> None:
        if count := self._database.call(recovery.expire_unbegun):
            log.info("%d jobs expired before they were started", count)
        while finish.finish_one_queued(self._database, self._worker, self._left):
            pass

    def _publish_pending(self, pending: scheduling.PendingWork) -> int:
        published = self._publish(scheduling.due) if pending.due or pending.lost else 0
        if pending.stale and self._publisher.length() == 0:
            count = self._publish(lambda conn: scheduling.stale_published(conn, self._stale_s))
            if count:
                log.warning("%d jobs published again: no worker has claimed them", count)
            published += count
        if time.monotonic() >= self._next_parked:
            self._next_parked += _PARKED_EVERY_S
            self._publisher.publish(self._database.call(scheduling.one_parked_each))
        return published

    def _publish(self, choose: Callable[[Conn], Sequence[UUID]]) -> int:
        # Marked and committed before: a worker skips rows that are locked.
        self._publisher.length()  # raises before anything is written, if Redis is down
        if not (job_ids := self._database.call(choose)):
            return 0
        try:
            self._publisher.publish(job_ids)
        except BrokerUnavailable:
            self._database.call(scheduling.unpublished, job_ids)
            raise
        metrics.record(metrics.PUBLISHED, len(job_ids))
        self._database.call(scheduling.log_published, job_ids)
        return len(job_ids)


def run(settings: Settings) -> int:
    """Entry point of `marco scheduler`: tick until SIGTERM or Ctrl-C; the exit code.

    Raises DatabaseUnavailable if Postgres is down at the start (Redis may be), SchemaMismatch then
    or when the database is migrated, and AddressTaken for the port of the metrics.
    """
    process.check_database(settings)
    logs.set_up(settings)
    scheduler = Scheduler(settings, process.this_worker("scheduler "))

    def leave(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGALRM:
            os._exit(0)  # a hanging tick; it leaves nothing half done
        scheduler.request_stop()
        signal.alarm(STOP_S)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGALRM):
        signal.signal(number, leave)
    database = Database(
        database_url(settings), application="marco metrics", connections=1, read_only=True
    )

    def exporter() -> Collector:
        from marco_search.store.reads.exporter import Exporter

        return Exporter(database, scheduler.workers)

    with closing(database), metrics.measured(settings, [metrics.SCHEDULER], exporter):
        log.info("scheduler: started, lease %g s", settings.lease_s)
        scheduler.run()
        signal.alarm(0)
    log.info("scheduler: stopped")
    return 0
