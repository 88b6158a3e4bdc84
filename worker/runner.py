"""Runs one job: claim it, search it, and end it one way or another."""

from __future__ import annotations

import logging
from collections.abc import Callable
from uuid import UUID

from marco_search import driver
from marco_search.errors import DatabaseUnavailable, LeaseLost
from marco_search.jobs import Job, parse_job
from marco_search.outcome import job_result, ranked_answers
from marco_search.runtime.base import Runtime
from marco_search.search.mcts import StopReason
from marco_search.settings import Settings
from marco_search.store import leases, trail
from marco_search.store.connect import Conn, Database
from marco_search.store.leases import Claim, Lease, Worker
from marco_search.store.states import JobState
from worker import failures
from worker.journal import PostgresJournal
from worker.lease import Heartbeat

log = logging.getLogger(__name__)


class Runner:
    """Runs jobs one after the other, on a runtime that is opened when first needed."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        open_runtime: Callable[[], Runtime],
        worker: Worker,
    ) -> None:
        self._settings = settings
        self._database = database
        self._open_runtime = open_runtime
        self._worker = worker
        self._runtime: Runtime | None = None

    def run(self, job_id: UUID) -> None:
        """Claim the job and run it to its end. Does nothing if there is nothing to do.

        Never raises for a job's own errors: they are kept with the job. If the lease or the
        database is lost on the way, the job goes on elsewhere from its last kept round.
        """
        try:
            self._run(job_id)
        except LeaseLost as error:
            log.warning("%s", error)
        except DatabaseUnavailable as error:
            log.error("job %s is left to a later attempt: %s", job_id, error)

    def close(self) -> None:
        """Close the runtime."""
        if self._runtime is not None:
            self._runtime.close()
            self._runtime = None

    def _run(self, job_id: UUID) -> None:
        # Before the claim: loading a model may take longer than a lease.
        runtime, trouble = self._ready_runtime()
        with self._database.transaction() as conn:
            claim = leases.claim(conn, job_id, self._worker, lease_s=self._settings.lease_s)
            if claim is None:
                log.debug("job %s: nothing to do", job_id)
                return
            lease = Lease(
                job_id=job_id, generation=claim.generation, seconds=self._settings.lease_s
            )
            if claim.attempts > self._settings.max_attempts:
                self._bury(conn, claim, lease)
                return
            job, plan = None, None
            if runtime is not None:
                try:
                    job = parse_job(claim.payload)
                    plan = _plan(claim, job, runtime)
                except Exception as error:
                    trouble = error
            info = runtime.info if runtime is not None else None
            leases.begin(conn, lease, self._worker, info, plan.to_json() if plan else None)
        if runtime is None or job is None or plan is None:
            assert trouble is not None
            self._failed(claim, lease, trouble)
            return
        try:
            self._search(claim, lease, job, plan, runtime)
        except (LeaseLost, DatabaseUnavailable):
            raise
        except Exception as error:
            self._failed(claim, lease, error)

    def _ready_runtime(self) -> tuple[Runtime | None, Exception | None]:
        if self._runtime is None:
            try:
                self._runtime = self._open_runtime()
            except Exception as error:
                return None, error
        return self._runtime, None

    def _search(
        self, claim: Claim, lease: Lease, job: Job, plan: driver.Plan, runtime: Runtime
    ) -> None:
        log.info("job %s: attempt %d, from round %d", claim.job_id, claim.attempts, claim.rounds)
        heartbeat = Heartbeat(
            self._database,
            lease,
            every_s=self._settings.heartbeat_s,
            cancel_requested=claim.cancel_requested,
            on_end=runtime.abort,
        )
        with heartbeat:
            journal = PostgresJournal(self._database, heartbeat, seconds=claim.seconds)
            finished = driver.run_search(job, plan, runtime, journal)
            # Only now: no search is to see the expected answer.
            job = job.model_copy(update={"expected": claim.expected})
            cancelled = finished.search.stop_reason is StopReason.CANCELLED
            state = JobState.CANCELLED if cancelled else JobState.SUCCEEDED
            result = job_result(job, finished, job_id=str(claim.job_id), state=state)
            ranked = ranked_answers(job, finished.search)
            with self._database.transaction() as conn:
                reached_by = {answer.key: answer.rollout_ids for answer in ranked}
                trail.write_answers(conn, lease, result.answers, reached_by)
                leases.end(conn, lease, state, result=result)
        log.info("job %s: %s, %d nodes, %.1f s", claim.job_id, state, result.nodes, result.seconds)

    def _failed(self, claim: Claim, lease: Lease, error: Exception) -> None:
        """Keep the error with the job: try again later, give up, or report a bug."""
        about = failures.described(error)
        again = failures.is_retryable(error)
        level = logging.WARNING if again else logging.ERROR
        trace = error if failures.is_bug(error) else None
        log.log(level, "job %s: %s", claim.job_id, error or type(error).__name__, exc_info=trace)
        with self._database.transaction() as conn:
            if again and claim.cancel_requested:
                leases.end(conn, lease, JobState.CANCELLED, error=about)
            elif again and claim.attempts < self._settings.max_attempts:
                delay_s = failures.delay_s(claim.attempts)
                leases.retry(conn, lease, delay_s=delay_s, error=about)
            else:
                state = JobState.DEAD if again else JobState.FAILED
                leases.end(conn, lease, state, error=about)

    def _bury(self, conn: Conn, claim: Claim, lease: Lease) -> None:
        """End a job that went down with every worker that tried it."""
        tried = claim.attempts - 1
        message = f"the workers of all {tried} attempts were lost while they ran it"
        log.error("job %s: %s", claim.job_id, message)
        error = {"type": "WorkerLost", "message": message, "retryable": False}
        leases.end(conn, lease, JobState.DEAD, error=error)


def _plan(claim: Claim, job: Job, runtime: Runtime) -> driver.Plan:
    """The job's plan: the one it was begun with, so that the same search goes on."""
    if claim.plan is not None:
        return driver.Plan.from_json(claim.plan)
    return driver.plan(job, runtime)
