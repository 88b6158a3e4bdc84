"""Who may run a job: claim, heartbeat, and the ways a claim ends.

A claim takes a lease with a generation that only ever grows. Every later write names its
generation; once another worker has claimed the job it finds no row and raises LeaseLost,
in the same transaction, so that nothing of it is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from marco_search.errors import LeaseLost
from marco_search.jobs import JobResult
from marco_search.runtime.base import RuntimeInfo
from marco_search.store import seals
from marco_search.store.connect import Conn
from marco_search.store.states import CHANNEL, JobState


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """Who claims. `name` tells processes apart."""

    name: str
    host: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to write to a job, until another generation takes it."""

    job_id: UUID
    generation: int
    seconds: float  # how long it lasts from the last heartbeat


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A job as claimed."""

    job_id: UUID
    generation: int
    kind: str
    payload: dict[str, Any]
    expected: str | None
    plan: dict[str, Any] | None  # None: never begun
    attempts: int  # this one included
    seconds: float  # searched so far
    rounds: int  # kept so far
    cancel_requested: bool


def claim(conn: Conn, job_id: UUID, worker: Worker, *, lease_s: float) -> Claim | None:
    """Take the job if it is due, or if the lease of whoever has it ran out.

    None if there is nothing to do: it is running elsewhere, has ended, waits for its
    back-off, or does not exist.
    """
    with conn.cursor(row_factory=class_row(Claim)) as cursor:
        return cursor.execute(
            """
            WITH claimed AS (
                UPDATE jobs SET state = 'running', attempts = attempts + 1,
                    lease_generation = lease_generation + 1, lease_owner = %(worker)s,
                    lease_expires_at = now() + make_interval(secs => %(lease_s)s),
                    started_at = coalesce(started_at, now())
                WHERE id = %(id)s AND (state = 'queued' AND run_after <= now()
                    OR state = 'running' AND lease_expires_at < now())
                RETURNING *
            ), logged AS (
                INSERT INTO audit_log (job_id, generation, event, detail)
                SELECT id, lease_generation, 'claimed', %(detail)s FROM claimed
            )
            SELECT id AS job_id, lease_generation AS generation, kind, payload, expected, plan,
                attempts, seconds, rounds, cancel_requested_at IS NOT NULL AS cancel_requested
            FROM claimed
            """,
            {
                "id": job_id,
                "worker": worker.name,
                "lease_s": lease_s,
                "detail": Jsonb({"worker": worker.name, "host": worker.host, "pid": worker.pid}),
            },
        ).fetchone()


def begin(
    conn: Conn,
    lease: Lease,
    worker: Worker,
    info: RuntimeInfo | None,
    plan: dict[str, Any] | None,
) -> None:
    """Write the attempt, and fix the job's plan if it has none. In the claim's transaction.

    `info` and `plan` (`driver.Plan.to_json`) are None if the runtime could not be used.
    """
    conn.execute(
        """
        INSERT INTO attempts (job_id, generation, worker, host, pid, runtime, runtime_version,
            model, revision, config, prompt, seed)
        VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
        """,
        [
            lease.job_id, lease.generation, worker.name, worker.host, worker.pid,
            info and info.name, info and info.version, info and info.model,
            info and info.revision, plan and Jsonb(plan["config"]), plan and plan["prompt"],
            plan and plan["config"]["seed"],
        ],
    )  # fmt: skip
    if plan is not None:
        conn.execute(
            "UPDATE jobs SET plan = %s WHERE id = %s AND plan IS NULL",
            [Jsonb(plan), lease.job_id],
        )


def heartbeat(conn: Conn, lease: Lease) -> bool:
    """Extend the lease; True if the job was asked to stop. Raises LeaseLost."""
    row = conn.execute(
        """
        UPDATE jobs SET lease_expires_at = now() + make_interval(secs => %s)
        WHERE id = %s AND lease_generation = %s AND state = 'running'
        RETURNING cancel_requested_at IS NOT NULL
        """,
        [lease.seconds, lease.job_id, lease.generation],
    ).fetchone()
    if row is None:
        raise lost(lease)
    return bool(row[0])


def retry(conn: Conn, lease: Lease, *, delay_s: float, error: dict[str, Any]) -> None:
    """Give the job back, to be claimed again in `delay_s`. Raises LeaseLost."""
    row = conn.execute(
        """
        WITH given AS (
            UPDATE jobs SET state = 'queued', lease_owner = NULL, lease_expires_at = NULL,
                run_after = now() + make_interval(secs => %(delay_s)s), last_error = %(error)s
            WHERE id = %(id)s AND lease_generation = %(generation)s AND state = 'running'
            RETURNING id
        )
        INSERT INTO audit_log (job_id, generation, event, detail)
        SELECT id, %(generation)s, 'retried', %(error)s || jsonb_build_object('delay_s',
            %(delay_s)s::float8) FROM given RETURNING job_id
        """,
        _names(lease) | {"delay_s": delay_s, "error": Jsonb(error)},
    ).fetchone()
    if row is None:
        raise lost(lease)


def end(
    conn: Conn,
    lease: Lease,
    state: JobState,
    *,
    result: JobResult | None = None,
    error: dict[str, Any] | None = None,
) -> None:
    """Put the job into a final state, seal it, and tell those who wait. Raises LeaseLost.

    The trail's totals and the answers are stored already; `result` gives the best answer,
    `error` (type, message, traceback) what went wrong. The last thing in its transaction.
    """
    best = result and result.answer
    row = conn.execute(
        """
        WITH ended AS (
            UPDATE jobs SET state = %(state)s, finished_at = now(), lease_owner = NULL,
                lease_expires_at = NULL, answer = %(answer)s, confidence = %(confidence)s,
                correct = %(correct)s, stop_reason = %(stop_reason)s,
                seconds = greatest(seconds, %(seconds)s),
                last_error = coalesce(%(error)s, last_error)
            WHERE id = %(id)s AND lease_generation = %(generation)s AND state = 'running'
            RETURNING id
        ), logged AS (
            INSERT INTO audit_log (job_id, generation, event, detail)
            SELECT id, %(generation)s, %(state)s, coalesce(%(error)s, '{}') FROM ended
        )
        SELECT pg_notify(%(channel)s, id::text) FROM ended
        """,
        _names(lease) | {
            "state": state,
            "answer": best and best.text,
            "confidence": best and best.confidence,
            "correct": result and result.correct,
            "stop_reason": result and result.stop_reason,
            "seconds": result.seconds if result else 0.0,
            "error": None if error is None else Jsonb(error),
            "channel": CHANNEL,
        },
    ).fetchone()  # fmt: skip
    if row is None:
        raise lost(lease)
    seals.seal(conn, [lease.job_id])


def lost(lease: Lease) -> LeaseLost:
    """The error for a lease that another generation has taken."""
    return LeaseLost(f"job {lease.job_id}: generation {lease.generation} does not hold it any more")


def _names(lease: Lease) -> dict[str, Any]:
    return {"id": lease.job_id, "generation": lease.generation}
