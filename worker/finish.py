"""How a job ends: with its ranked answers, without another round, or with an error.

Everything is written in the transaction that ends the job. What an error means:

- retryable (`MarcoError.retryable`): the job goes back to the queue with a growing delay,
  until its attempts are used up; then it is dead
- a shortage on the worker's machine (memory, threads, files, disk): the same
- permanent (any other `MarcoError`): failed, since a retry would fail the same way
- anything else is a bug: failed
"""

import errno
import logging
import random
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from uuid import UUID

import psycopg

from marco_search import engine, logs, tracing
from marco_search.errors import AnotherVersion, LeaseLost, MarcoError
from marco_search.jobs import Job, JobResult
from marco_search.metrics import ATTEMPTS, record
from marco_search.search.budgets import StopReason
from marco_search.search.tree import Tree
from marco_search.store.db import Conn, Database
from marco_search.store.queue import leases, recovery
from marco_search.store.queue.leases import Claim, Worker
from marco_search.store.queue.states import JobState
from marco_search.store.trail import trail
from marco_search.text import redacted

log = logging.getLogger(__name__)

FIRST_DELAY_S = 2.0
LONGEST_DELAY_S = 300.0
_MAX_TRACEBACK_CHARS = 20_000
_LEASE_S = 10.0  # of a claim that ends in its own transaction
_SHORTAGES = {
    errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT,
}  # fmt: skip

# The state of a job whose search stopped for this reason; otherwise it succeeded.
_STATES = {
    StopReason.CANCELLED: JobState.CANCELLED,
    StopReason.DEADLINE: JobState.EXPIRED,
}


def traceparent(claim: Claim) -> str:
    """Of the attempt's span."""
    return tracing.traceparent(claim.job_id, claim.traceparent, f"attempt {claim.generation}")


def fields(claim: Claim) -> dict[str, Any]:
    """Fields added to each log record about the attempt."""
    about = {"job": claim.job_id, "attempt": claim.attempts, "round": claim.rounds}
    return about | {"trace_id": traceparent(claim).split("-")[1]}


def finish(
    conn: Conn,
    claim: Claim,
    job: Job,
    finished: engine.FinishedSearch,
    write_unstored: Callable[[Conn], bool | None] = lambda conn: None,
) -> JobResult:
    """End the job with what its search has found. Raises LeaseLost.

    `write_unstored` writes its last round and returns whether the job was cancelled meanwhile;
    None if that round is stored. Writes nothing if the job has already ended, as when a commit is
    retried whose acknowledgement was lost.
    """
    cancelled = ended = None
    with suppress(LeaseLost):  # if it has already ended, which is checked only then
        cancelled = write_unstored(conn)
    if cancelled is None:
        ended = leases.ended(conn, claim.lease)
    elif cancelled:
        finished.search.stop_reason = StopReason.CANCELLED
    # Not earlier: no search may see the expected answer.
    job = job.model_copy(update={"expected": claim.expected})
    reason = finished.search.stop_reason
    state = _STATES.get(reason, JobState.SUCCEEDED) if reason else JobState.SUCCEEDED
    result = engine.job_result(job, finished, job_id=str(claim.job_id), state=ended or state)
    if ended is None:
        trail.write_answers(conn, claim.lease, result.answers)
        # Last: it seals the job's rows.
        leases.end(conn, claim.lease, state, result=result)
    return result


def finish_unsearched(conn: Conn, claim: Claim, worker: Worker) -> JobState:
    """End a newly claimed job that was cancelled or has expired, without another round; its state.

    Needs no model: the answers come from the rounds in its trail. Raises AnotherVersion before
    anything is written.
    """
    job, plan = engine.stored(claim.payload, claim.plan) if claim.rounds else (None, None)
    leases.begin(conn, claim.lease, worker, None, claim.plan)
    reason = StopReason.CANCELLED if claim.cancel_requested else StopReason.DEADLINE
    if job is None or plan is None:
        error = None if claim.cancel_requested else recovery.NEVER_BEGUN
        leases.end(conn, claim.lease, _STATES[reason], error=error)
    else:
        tree = Tree.restore(*trail.load(conn, claim.job_id))
        search = engine.restore_search(job, plan, tree)
        search.stop(reason)
        ended = engine.FinishedSearch(plan=plan, search=search, seconds=claim.seconds)
        finish(conn, claim, job, ended)
    log.info("job %s: %s after %d rounds", claim.job_id, _STATES[reason], claim.rounds)
    return _STATES[reason]


def finish_one_queued(database: Database, worker: Worker, left: set[UUID]) -> bool:
    """End one queued job that has rounds and was cancelled or expired. False if there is none.

    In a rolling update, jobs started by another version are `left` to its schedulers.
    """
    with database.transaction() as conn:
        claim = leases.claim_ending(conn, worker, lease_s=_LEASE_S, apart=left)
        if claim is None:
            return False
        with logs.about(**fields(claim)):
            try:
                outcome = _finish_claimed(conn, claim, worker)
            except AnotherVersion as error:
                conn.rollback()
                left.add(claim.job_id)
                log.warning("job %s: left to another scheduler: %s", claim.job_id, error)
                return True
    record(ATTEMPTS, 1, outcome)
    return True


def _finish_claimed(conn: Conn, claim: Claim, worker: Worker) -> JobState:
    try:
        with conn.transaction():
            return finish_unsearched(conn, claim, worker)
    except (AnotherVersion, psycopg.OperationalError):
        raise  # a lock or a time limit: another try may still rank its answers
    except Exception as error:
        # A job that can't be ended must not be found again and again.
        log.exception("job %s: no answer from its trail", claim.job_id)
        leases.begin(conn, claim.lease, worker, None, claim.plan)
        leases.end(conn, claim.lease, JobState.FAILED, error=described(error))
        return JobState.FAILED


def fail(conn: Conn, claim: Claim, error: Exception, *, seconds: float, max_attempts: int) -> str:
    """Store the error with the job, which is then "retried", "dead" or "failed"."""
    about, retryable = described(error), is_retryable(error)
    log.log(
        logging.WARNING if retryable else logging.ERROR,
        "job %s: %s",
        claim.job_id,
        error or type(error).__name__,
        exc_info=None if isinstance(error, MarcoError) else error,
    )
    failures = claim.failures + 1
    if retryable and failures < max_attempts:
        delay = delay_s(failures)
        leases.retry(conn, claim.lease, delay_s=delay, error=about, seconds=seconds)
        return "retried"
    state = JobState.DEAD if retryable else JobState.FAILED
    leases.end(conn, claim.lease, state, error=about, seconds=seconds)
    return state


def is_retryable(error: BaseException) -> bool:
    """True if a retry may succeed without any change."""
    match error:
        case MarcoError():
            return error.retryable
        case OSError():
            return error.errno in _SHORTAGES
        case RuntimeError():  # Python has no exception class for it
            return str(error).startswith("can't start new thread")
    return isinstance(error, MemoryError)


def described(error: BaseException) -> dict[str, Any]:
    """The error as the job row and the audit log keep it, with the traceback if it is a bug."""
    message = _storable(str(error)) or type(error).__name__
    about: dict[str, Any] = {"type": type(error).__name__, "message": message}
    about["retryable"] = is_retryable(error)
    if error.__traceback__ is not None and not isinstance(error, MarcoError):
        trace = _storable("".join(traceback.format_exception(error)))
        about["traceback"] = trace[-_MAX_TRACEBACK_CHARS:]
    return about


def _storable(text: str) -> str:
    """`text` as auditors may read it and Postgres can hold it: no secret, NUL or lone surrogate."""
    return redacted(text).replace("\x00", "\\0").encode("utf-8", "backslashreplace").decode()


def delay_s(
    attempts: int,
    chance: random.Random | None = None,
    *,
    first_s: float = FIRST_DELAY_S,
    longest_s: float = LONGEST_DELAY_S,
) -> float:
    """Seconds until the next attempt: doubled with each, randomised by ±50 %.

    `attempts` counts those made. Randomising keeps jobs that failed together from returning
    together.
    """
    delay = min(longest_s, first_s * 2.0 ** min(attempts - 1, 30))
    return delay * (chance or random).uniform(0.5, 1.5)
