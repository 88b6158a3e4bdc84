"""Ends a job: ranks its answers and writes them, in the transaction that ends it.

Also without a model: a job whose deadline passed, or that was cancelled, while no worker had
it keeps the best answers of the rounds in its trail.
"""

from __future__ import annotations

import logging

from marco_search import engine
from marco_search.engine import job_result
from marco_search.jobs import Job
from marco_search.kinds import parse_job
from marco_search.search.budgets import StopReason
from marco_search.store.db import Conn, Database
from marco_search.store.queue import claims, deadlines, leases
from marco_search.store.queue.claims import Claim
from marco_search.store.queue.leases import Lease, Worker
from marco_search.store.queue.states import JobState
from marco_search.store.trail import trail
from worker import failures

log = logging.getLogger(__name__)

# What becomes of a job whose search ended for this reason; else it has succeeded.
_STATES = {
    StopReason.CANCELLED: JobState.CANCELLED,
    StopReason.DEADLINE: JobState.EXPIRED,
}
_LEASE_S = 10.0  # of a claim that ends in its own transaction


def finish(
    conn: Conn, claim: Claim, lease: Lease, job: Job, finished: engine.FinishedSearch
) -> JobState:
    """End the job with what its search has found; its state. Raises LeaseLost.

    If it has ended already it stays: a commit whose answer was lost is tried again.
    """
    kept = leases.ended(conn, lease)
    if kept is not None:
        return kept
    # Only now: no search is to see the expected answer.
    job = job.model_copy(update={"expected": claim.expected})
    reason = finished.search.stop_reason
    state = _STATES.get(reason, JobState.SUCCEEDED) if reason else JobState.SUCCEEDED
    result = job_result(job, finished, job_id=str(claim.job_id), state=state)
    ranked = finished.search.ranked()
    reached_by = {answer.key: answer.rollout_ids for answer in ranked}
    trail.write_answers(conn, lease, result.answers, reached_by)
    # Last: it seals the job's rows.
    leases.end(conn, lease, state, result=result)
    return state


def close(conn: Conn, claim: Claim, lease: Lease, worker: Worker) -> None:
    """End a job just claimed, that was cancelled or has expired, without another round."""
    claims.begin(conn, lease, worker, None, claim.plan)
    reason = StopReason.CANCELLED if claim.cancel_requested else StopReason.DEADLINE
    if claim.plan is None or not claim.rounds:
        error = None if claim.cancel_requested else deadlines.NEVER_BEGUN
        leases.end(conn, lease, _STATES[reason], error=error)
    else:
        job, plan = parse_job(claim.payload), engine.SearchPlan.from_json(claim.plan)
        nodes, rollouts = trail.load(conn, claim.job_id)
        search = engine.restore_search(job, plan, nodes, rollouts)
        search.stop(reason)
        ended = engine.FinishedSearch(plan=plan, search=search, seconds=claim.seconds)
        finish(conn, claim, lease, job, ended)
    log.info("job %s: %s after %d rounds", claim.job_id, _STATES[reason], claim.rounds)


def close_one_expired(database: Database, worker: Worker) -> bool:
    """End one queued job that has rounds and is past its deadline. False: there is none."""
    with database.transaction() as conn:
        job_id = deadlines.begun(conn)
        claim = job_id and claims.claim(conn, job_id, worker, lease_s=_LEASE_S)
        if not claim:
            return False
        lease = Lease(job_id=claim.job_id, generation=claim.generation, seconds=_LEASE_S)
        try:
            with conn.transaction():
                close(conn, claim, lease, worker)
        except Exception as error:
            # One that can't be ended in order must not be found again and again.
            log.exception("job %s: no answer from its trail", job_id)
            claims.begin(conn, lease, worker, None, claim.plan)
            leases.end(conn, lease, JobState.FAILED, error=failures.described(error))
        return True
