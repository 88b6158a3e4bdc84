"""Runs one job: claims it, searches it, and ends it one way or another."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from uuid import UUID

import psycopg

from marco_search import engine, logs, scorers, tracing
from marco_search.errors import (
    AnotherVersion,
    DatabaseUnavailable,
    LeaseLost,
    MarcoError,
    RoundTooLong,
    RuntimeUnavailable,
    SchemaMismatch,
)
from marco_search.jobs import Job, JobResult
from marco_search.metrics import (
    ATTEMPTS,
    CLAIM,
    CONFIDENCE,
    SEARCH_SECONDS,
    SEARCHES,
    WAIT,
    record,
)
from marco_search.runtime.base import Runtime
from marco_search.search.budgets import StopReason
from marco_search.settings import Settings
from marco_search.store.db import Conn, Database
from marco_search.store.queue import leases, scheduling
from marco_search.store.queue.leases import Claim, Worker
from worker import finish
from worker.journal import PULSE_S, LeasedJournal, Pulse
from worker.shutdown import Shutdown

log = logging.getLogger(__name__)

_LONGEST_PAUSE_S = 30.0
"""Seconds between attempts to open the runtime."""
_ELSEWHERE_S = 10.0
"""Seconds until a job that this version can't read may be claimed again; doubled each time."""


class Runner:
    """Runs jobs one after the other, on a runtime that is opened when first needed.

    `publish` sends a message for a released job; without it a scheduler does. `retry_s`
    is the pause between tries while Postgres is unavailable.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        open_runtime: Callable[[], Runtime],
        worker: Worker,
        *,
        shutdown: Shutdown | None = None,
        publish: Callable[[UUID], None] | None = None,
        retry_s: float = 0.5,
    ) -> None:
        self._settings = settings
        self._database = database
        self._open_runtime = open_runtime
        self._worker = worker
        self._shutdown = shutdown or Shutdown()
        self._publish = publish
        self._retry_s = retry_s
        self._runtime: Runtime | None = None
        self._open_failures = 0  # in a row
        self._open_at = 0.0  # on time.monotonic(): no attempt before
        self._known_tokens = defaultdict[tuple[str, str], set[int]](set)  # by model and revision
        self._pulse = Pulse(min(PULSE_S, settings.heartbeat_s))

    def run_next(self) -> None:
        """Claim the next job and run it. Does nothing if none is due.

        Never raises for a job's own errors: they are stored with the job. If the lease or the
        database is lost meanwhile, the job continues elsewhere from its last stored round.
        Raises SchemaMismatch if the database was migrated: this version must then stop.
        """
        # Before the claim: loading a model may take longer than a lease, and a failure to load
        # it must not be charged to a job.
        runtime = self._ready_runtime()
        if runtime is None or self._shutdown.seconds_left is not None:
            return
        with logs.about():  # the job, once one is claimed
            try:
                claimed = self._claim_next(runtime)
            except DatabaseUnavailable as error:
                log.error("no job could be claimed: %s", error)
                return
            if claimed is not None:
                self._search(*claimed, runtime)

    def close(self) -> None:
        """Close the runtime."""
        if self._runtime is not None:
            self._runtime.close()
            self._runtime = None

    def _claim_next(self, runtime: Runtime) -> tuple[Claim, Job, engine.SearchPlan] | None:
        """A job to search; None if none is due, or the claimed one was ended or failed instead."""
        with self._database.transaction() as conn, conn.pipeline():
            claim = self._claim(conn, runtime)
            begun = None if claim is None else self._begin(conn, claim, runtime)
        if claim is None or begun is None:
            return None
        record(WAIT, claim.waited_s)
        if isinstance(begun, str):
            record(ATTEMPTS, 1, begun)
            return None
        return claim, *begun

    def _claim(self, conn: Conn, runtime: Runtime) -> Claim | None:
        begun_on = scheduling.key(runtime.info.model, runtime.info.revision)
        lease_s, began = self._settings.lease_s, time.monotonic()
        try:
            claim = leases.claim_next(conn, self._worker, lease_s=lease_s, begun_on=begun_on)
        except psycopg.Error:
            record(CLAIM, time.monotonic() - began)  # the slowest end at a time limit
            raise
        if claim is None:
            scheduling.park(conn, begun_on)
        else:
            record(CLAIM, time.monotonic() - began)
            logs.now_about(**finish.fields(claim))
        # If not now, a job that waited for this model will soon be first.
        if claim is None or claim.plan is not None:
            scheduling.unpark(conn, begun_on)
        return claim

    def _begin(
        self, conn: Conn, claim: Claim, runtime: Runtime
    ) -> tuple[Job, engine.SearchPlan] | str:
        """The job and its plan, or how the attempt ended without a search."""
        if claim.cancel_requested or claim.expired:
            try:
                return finish.finish_unsearched(conn, claim, self._worker)
            except AnotherVersion as error:
                return self._leave(conn, claim, runtime, error)
        try:
            # The plan that it was started with, so that the same search continues.
            job, kept = engine.stored(claim.payload, claim.plan)
            plan = kept or engine.make_plan(job, runtime)
        except AnotherVersion as error:
            return self._leave(conn, claim, runtime, error)
        except Exception as error:
            leases.begin(conn, claim.lease, self._worker, runtime.info, None)
            return self._fail(conn, claim, error, claim.seconds)
        leases.begin(conn, claim.lease, self._worker, runtime.info, claim.plan or plan.to_json())
        return job, plan

    def _leave(self, conn: Conn, claim: Claim, runtime: Runtime, error: AnotherVersion) -> str:
        """In a rolling update: leave the job to a worker of that version."""
        leases.begin(conn, claim.lease, self._worker, runtime.info, None)
        leases.release(
            conn, claim.lease, why=str(error), seconds=claim.seconds, published=False,
            delay_s=finish.delay_s(claim.attempts, first_s=_ELSEWHERE_S),
        )  # fmt: skip
        log.warning("job %s: left to another worker: %s", claim.job_id, error)
        return "released"

    def _fail(self, conn: Conn, claim: Claim, error: Exception, seconds: float) -> str:
        attempts = self._settings.max_attempts
        return finish.fail(conn, claim, error, seconds=seconds, max_attempts=attempts)

    def _ready_runtime(self) -> Runtime | None:
        """The runtime; None if it can't be opened now. Retried after a growing pause."""
        if self._runtime is None and time.monotonic() >= self._open_at:
            try:
                self._runtime = self._open_runtime()
            except Exception as error:
                self._open_failures += 1
                pause_s = min(finish.delay_s(self._open_failures), _LONGEST_PAUSE_S)
                self._open_at = time.monotonic() + pause_s
                log.error(
                    "runtime unavailable, retrying in %.0f s: %s",
                    pause_s,
                    error or type(error).__name__,
                    exc_info=None if isinstance(error, MarcoError) else error,
                )
            else:
                self._open_failures = 0
        return self._runtime

    def _search(self, claim: Claim, job: Job, plan: engine.SearchPlan, runtime: Runtime) -> None:
        tracing.REQUESTS.set(finish.traceparent(claim))
        try:
            outcome = self._search_claimed(claim, job, plan, runtime)
        except LeaseLost as error:
            outcome = "lease_lost"
            log.warning("%s", error)
        except DatabaseUnavailable as error:
            outcome = "left"
            log.error("attempt abandoned, a later one continues the job: %s", error)
        record(ATTEMPTS, 1, outcome)

    def _search_claimed(
        self, claim: Claim, job: Job, plan: engine.SearchPlan, runtime: Runtime
    ) -> str:
        """How the attempt ended. Raises LeaseLost, DatabaseUnavailable."""
        log.info("job %s: attempt %d, from round %d", claim.job_id, claim.attempts, claim.rounds)

        def abort() -> None:
            runtime.abort()
            scorers.abort()

        model = plan.model, plan.revision
        journal = LeasedJournal(
            self._database,
            claim.lease,
            every_s=self._settings.heartbeat_s,
            model=model,
            seconds=claim.seconds,
            shutdown=self._shutdown,
            on_abort=abort,
            begun=claim.rounds > 0,
            known_tokens=self._known_tokens[model],
            retry_s=self._retry_s,
        )
        with ExitStack() as beating:
            try:
                beating.enter_context(self._pulse.of(journal.beat))  # starting the thread may fail
                finished = engine.run_search(job, plan, runtime, journal)
                if finished.search.stop_reason is StopReason.RELEASED:
                    self._require_round(claim, journal, finished)
                    self._release(journal, finished)
                    return "released"
                result = journal.retry_while_unavailable(
                    lambda conn: finish.finish(conn, claim, job, finished, journal.write_unstored)
                )
            except (LeaseLost, DatabaseUnavailable, SchemaMismatch):
                raise
            except Exception as error:
                # Otherwise the job would be charged with a lost worker.
                failure, seconds = error, journal.seconds
                self._store_last_round(journal)
                outcome = journal.retry_while_unavailable(
                    lambda conn: self._fail(conn, claim, failure, seconds)
                )
                if isinstance(error, RuntimeUnavailable):
                    # It must respond again before another job is charged for it.
                    self.close()
                return outcome
        _count(result)
        about = result.state, result.nodes, result.seconds
        log.info("job %s: %s, %d nodes, %.1f s", claim.job_id, *about)
        return result.state

    def _require_round(
        self, claim: Claim, journal: LeasedJournal, finished: engine.FinishedSearch
    ) -> None:
        """Raises RoundTooLong if this attempt's time was up before its first round.

        If simply released, the job would start that round again forever.
        """
        none = finished.search.round == claim.rounds and not journal.signals.paused
        if none and self._shutdown.soft_time_limit_reached:
            limits = self._settings.attempt_s or 0.0, self._settings.stop_s
            raise RoundTooLong(
                f"no round in MARCO_ATTEMPT_S {limits[0]:g} and MARCO_STOP_S {limits[1]:g} "
                "seconds: raise one of them, or have fewer branches or tokens in a round"
            )

    def _store_last_round(self, journal: LeasedJournal) -> None:
        """Store the last round of a job that could not be ended, unless that is what fails."""
        try:
            journal.retry_while_unavailable(journal.write_unstored)
        except (LeaseLost, DatabaseUnavailable, SchemaMismatch):
            raise
        except Exception as error:
            log.error("job %s: its last round can't be stored: %s", journal.lease.job_id, error)

    def _release(self, journal: LeasedJournal, finished: engine.FinishedSearch) -> None:
        """Release the job, so that another worker continues at once from the last stored round."""
        paused = journal.signals.paused
        yields = not paused and self._shutdown.soft_time_limit_reached
        why = "paused" if paused else "its time is up" if yields else "the worker stops"
        # A paused job is published when it is resumed; if it was resumed since the last poll,
        # by a scheduler.
        publish = None if paused else self._publish

        def release(conn: Conn) -> None:
            journal.write_unstored(conn)
            leases.release(
                conn,
                journal.lease,
                why=why,
                seconds=finished.seconds,
                published=publish is not None,
                aging_s=self._settings.aging_s if yields else None,
            )

        journal.retry_while_unavailable(release)
        job_id = journal.lease.job_id
        log.info("job %s: released after round %d", job_id, finished.search.round)
        if publish is not None:
            publish(job_id)


def _count(result: JobResult) -> None:
    record(SEARCHES, 1, result.strategy, result.stop_reason or "")
    record(SEARCH_SECONDS, result.seconds)
    if result.answer is not None:
        record(CONFIDENCE, result.answer.confidence)
