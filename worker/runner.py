"""Runs one job: claim it, search it, and end it one way or another."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from uuid import UUID

from marco_search import engine
from marco_search.errors import (
    DatabaseUnavailable,
    LeaseLost,
    RuntimeUnavailable,
    SchemaMismatch,
)
from marco_search.jobs import Job
from marco_search.kinds import parse_job
from marco_search.runtime.base import Runtime
from marco_search.search.budgets import StopReason
from marco_search.settings import Settings
from marco_search.store.db import Conn, Database, check_schema
from marco_search.store.queue import claims, leases, line, reclaim
from marco_search.store.queue.claims import Claim
from marco_search.store.queue.leases import Lease, Worker
from marco_search.store.queue.states import JobState
from marco_search.store.trail.vocabulary import Written
from worker import closing, failures
from worker.journal import PostgresJournal
from worker.lease import Heartbeat

log = logging.getLogger(__name__)

_LONGEST_PAUSE_S = 30.0
"""Between two tries to open the runtime."""


class Runner:
    """Runs jobs one after the other, on a runtime that is opened when first needed.

    `publish` tells the broker of a job that is given back; without it a sweep will. `left_s`
    is None, or the seconds that are left to stop in; `time_is_up` says that only the job's own
    time is up (worker.stopping).
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        open_runtime: Callable[[], Runtime],
        worker: Worker,
        *,
        publish: Callable[[UUID], None] | None = None,
        left_s: Callable[[], float | None] = lambda: None,
        time_is_up: Callable[[], bool] = lambda: False,
    ) -> None:
        self._settings = settings
        self._database = database
        self._open_runtime = open_runtime
        self._worker = worker
        self._publish = publish
        self._left_s = left_s
        self._time_is_up = time_is_up
        self._runtime: Runtime | None = None
        self._open_failed = 0  # times in a row
        self._open_at = 0.0  # on time.monotonic(): not tried before
        self._written = Written()

    def run_next(self) -> None:
        """Claim the job whose turn it is, and run it. Does nothing if none is due.

        Never raises for a job's own errors: they are kept with the job. If the lease or the
        database is lost on the way, the job goes on elsewhere from its last kept round.
        Raises SchemaMismatch if the database was migrated: then this version must not go on.
        """

        def claim(conn: Conn, begun_on: str) -> Claim | None:
            lease_s = self._settings.lease_s
            found = claims.claim_next(conn, self._worker, lease_s=lease_s, begun_on=begun_on)
            if found is None:
                line.park(conn, begun_on)
            line.wake(conn, begun_on)
            return found

        self._guarded(claim)

    def run(self, job_id: UUID) -> None:
        """The same with one job, if it is due or its worker is gone."""

        def claim(conn: Conn, begun_on: str) -> Claim | None:
            limit = self._settings.quarantine_after
            reclaim.reclaim(conn, quarantine_after=limit, job_id=job_id)
            lease_s = self._settings.lease_s
            return claims.claim(conn, job_id, self._worker, lease_s=lease_s, begun_on=begun_on)

        self._guarded(claim)

    def close(self) -> None:
        """Close the runtime."""
        if self._runtime is not None:
            self._runtime.close()
            self._runtime = None

    def _guarded(self, claim: Callable[[Conn, str], Claim | None]) -> None:
        try:
            self._run(claim)
        except LeaseLost as error:
            log.warning("%s", error)
        except DatabaseUnavailable as error:
            log.error("the job is left to a later attempt: %s", error)

    def _run(self, choose: Callable[[Conn, str], Claim | None]) -> None:
        # Before the claim: loading a model may take longer than a lease. What keeps this process
        # from it is no fault of any job: none is claimed.
        runtime = self._ready_runtime()
        if runtime is None or self._left_s() is not None:
            return
        with self._database.transaction() as conn:
            check_schema(conn)
            claim = choose(conn, line.key(runtime.info.model, runtime.info.revision))
            if claim is None:
                log.debug("nothing is due")
                return
            lease = Lease(
                job_id=claim.job_id, generation=claim.generation, seconds=self._settings.lease_s
            )
            if claim.cancel_requested or claim.expired:
                closing.close(conn, claim, lease, self._worker)
                return
            job, plan, trouble = None, None, None
            try:
                job = parse_job(claim.payload)
                plan = _plan(claim, job, runtime)
            except Exception as error:
                trouble = error
            claims.begin(conn, lease, self._worker, runtime.info, plan.to_json() if plan else None)
            if trouble is not None:
                self._failed(conn, claim, lease, trouble, claim.seconds)
        if job is not None and plan is not None:
            self._search(claim, lease, job, plan, runtime)

    def _ready_runtime(self) -> Runtime | None:
        """The runtime; None if it can't be opened now. Tried again after a growing pause."""
        if self._runtime is None and time.monotonic() >= self._open_at:
            try:
                self._runtime = self._open_runtime()
            except Exception as error:
                self._open_failed += 1
                pause_s = min(failures.delay_s(self._open_failed), _LONGEST_PAUSE_S)
                self._open_at = time.monotonic() + pause_s
                trace = error if failures.is_bug(error) else None
                log.error(
                    "no job is taken for %.0f s, there is no runtime: %s",
                    pause_s,
                    error or type(error).__name__,
                    exc_info=trace,
                )
            else:
                self._open_failed = 0
        return self._runtime

    def _search(
        self, claim: Claim, lease: Lease, job: Job, plan: engine.SearchPlan, runtime: Runtime
    ) -> None:
        log.info("job %s: attempt %d, from round %d", claim.job_id, claim.attempts, claim.rounds)
        heartbeat = Heartbeat(
            self._database,
            lease,
            every_s=self._settings.heartbeat_s,
            left_s=self._left_s,
            on_end=runtime.abort,
        )
        journal = PostgresJournal(
            self._database,
            heartbeat,
            model=(plan.model, plan.revision),
            seconds=claim.seconds,
            written=self._written,
        )
        with heartbeat:
            try:
                finished = engine.run_search(job, plan, runtime, journal)
                if finished.search.stop_reason is StopReason.RELEASED:
                    self._release(lease, heartbeat, journal, finished)
                    return
                ended = journal.patiently(
                    lambda conn: closing.finish(conn, claim, lease, job, finished)
                )
            except (LeaseLost, DatabaseUnavailable, SchemaMismatch):
                raise
            except Exception as error:
                # Else the job would be charged with the loss of a worker instead.
                failure, seconds = error, journal.seconds
                journal.patiently(
                    lambda conn: self._failed(conn, claim, lease, failure, seconds),
                )
                if isinstance(error, RuntimeUnavailable):
                    # It must answer again before another job is charged with its absence.
                    self.close()
                return
        nodes, seconds = len(finished.search.tree.nodes) - 1, finished.seconds
        log.info("job %s: %s, %d nodes, %.1f s", claim.job_id, ended, nodes, seconds)

    def _release(
        self,
        lease: Lease,
        heartbeat: Heartbeat,
        journal: PostgresJournal,
        finished: engine.FinishedSearch,
    ) -> None:
        """Give the job back, so that another worker goes on from the last kept round at once."""
        paused = heartbeat.watch.paused
        gives_way = not paused and self._time_is_up()
        why = "paused" if paused else "its time is up" if gives_way else "the worker stops"
        # Whoever ends a pause publishes it; where that was done since we looked, a sweep does.
        published = not paused and self._publish is not None
        journal.patiently(
            lambda conn: leases.release(
                conn,
                lease,
                why=why,
                seconds=finished.seconds,
                published=published,
                aging_s=self._settings.aging_s if gives_way else None,
            )
        )
        log.info("job %s: released after round %d", lease.job_id, finished.search.round)
        if not paused and self._publish is not None:
            self._publish(lease.job_id)

    def _failed(
        self, conn: Conn, claim: Claim, lease: Lease, error: Exception, seconds: float
    ) -> None:
        """Keep the error with the job: try again later, give up, or report a bug."""
        about = failures.described(error)
        again = failures.is_retryable(error)
        level = logging.WARNING if again else logging.ERROR
        trace = error if failures.is_bug(error) else None
        log.log(level, "job %s: %s", claim.job_id, error or type(error).__name__, exc_info=trace)
        failed = claim.failures + 1
        if again and failed < self._settings.max_attempts:
            delay_s = failures.delay_s(failed)
            leases.retry(conn, lease, delay_s=delay_s, error=about, seconds=seconds)
        else:
            state = JobState.DEAD if again else JobState.FAILED
            leases.end(conn, lease, state, error=about)


def _plan(claim: Claim, job: Job, runtime: Runtime) -> engine.SearchPlan:
    """The job's plan: the one it was begun with, so that the same search goes on."""
    if claim.plan is not None:
        return engine.SearchPlan.from_json(claim.plan)
    return engine.make_plan(job, runtime)
