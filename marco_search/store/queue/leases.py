"""Who may write to a job: the heartbeat of a lease, and the ways it ends.

A claim (`claims`) takes a lease with a generation that only ever grows. Every later write
names its generation; once the job was taken back (`reclaim`) it finds no row and raises
LeaseLost, in the same transaction, so that nothing of it is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, LiteralString
from uuid import UUID

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from marco_search.errors import LeaseLost
from marco_search.jobs import JobResult
from marco_search.store.db import Conn
from marco_search.store.queue import jobs
from marco_search.store.queue.states import CHANNEL, JobState
from marco_search.store.seal import seals


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
class Watch:
    """What became of a job that is being searched."""

    cancelled: bool  # it was asked to stop
    expired: bool  # its deadline has passed
    paused: bool  # it, its tenant, or everything


PAUSED = """(paused_at IS NOT NULL OR EXISTS (
    SELECT FROM tenants AS t WHERE t.name IN ('', jobs.tenant) AND t.paused_at IS NOT NULL))"""
"""Condition on `jobs`: the job, its tenant or everything is paused."""

_WATCH = f"""cancel_requested_at IS NOT NULL AS cancelled,
    coalesce(expires_at <= now(), false) AS expired, {PAUSED} AS paused"""
_HELD = "id = %(id)s AND lease_generation = %(generation)s AND state = 'running'"


def heartbeat(conn: Conn, lease: Lease) -> Watch:
    """Extend the lease, and look. Raises LeaseLost."""
    extend = "UPDATE jobs SET lease_expires_at = now() + make_interval(secs => %(seconds)s)"
    return _watched(conn, lease, f"{extend} WHERE {_HELD} RETURNING {_WATCH}")


def look(conn: Conn, lease: Lease) -> Watch:
    """Look only: nothing is written. Raises LeaseLost."""
    return _watched(conn, lease, f"SELECT {_WATCH} FROM jobs WHERE {_HELD}")  # noqa: S608


def _watched(conn: Conn, lease: Lease, query: LiteralString) -> Watch:
    with conn.cursor(row_factory=class_row(Watch)) as cursor:
        found = cursor.execute(query, _names(lease) | {"seconds": lease.seconds}).fetchone()
    if found is None:
        raise lost(lease)
    return found


def release(
    conn: Conn,
    lease: Lease,
    *,
    why: str,
    seconds: float,
    published: bool,
    aging_s: float | None = None,
) -> None:
    """Give the job back as it is, due at once; no failure is counted. Raises LeaseLost.

    `seconds` is the time searched so far. `published` says that the caller tells the broker.
    The job keeps its place in the line; with `aging_s` it joins anew, as if submitted now.
    """
    if aging_s is not None:
        conn.execute(
            "UPDATE jobs SET turn_at = now() + make_interval(secs => priority / 3.0 * %(aging_s)s)"
            " WHERE id = %(id)s AND lease_generation = %(generation)s",
            _names(lease) | {"aging_s": aging_s},
        )
    _give_back(
        conn, lease, "released", {"why": why}, seconds=seconds, delay_s=0.0, published=published
    )


def retry(
    conn: Conn, lease: Lease, *, delay_s: float, error: dict[str, Any], seconds: float = 0.0
) -> None:
    """Give the job back after an error, to be claimed again in `delay_s`. Raises LeaseLost."""
    detail = error | {"delay_s": delay_s}
    _give_back(conn, lease, "retried", detail, seconds=seconds, delay_s=delay_s, error=error)


def _give_back(
    conn: Conn,
    lease: Lease,
    event: str,
    detail: dict[str, Any],
    *,
    seconds: float,
    delay_s: float,
    published: bool = False,
    error: dict[str, Any] | None = None,
) -> None:
    row = conn.execute(
        """
        WITH given AS (
            UPDATE jobs SET state = 'queued', lease_owner = NULL, lease_expires_at = NULL,
                run_after = now() + make_interval(secs => %(delay_s)s),
                published_at = CASE WHEN %(published)s THEN now() END,
                failures = failures + %(failures)s, seconds = greatest(seconds, %(seconds)s),
                last_error = coalesce(%(error)s, last_error)
            WHERE id = %(id)s AND lease_generation = %(generation)s AND state = 'running'
            RETURNING id, cancel_requested_at IS NOT NULL AS cancelled
        ), logged AS (
            INSERT INTO audit_log (job_id, generation, event, detail)
            SELECT id, %(generation)s, %(event)s, %(detail)s FROM given
        )
        SELECT cancelled FROM given
        """,
        _names(lease) | {
            "delay_s": delay_s,
            "published": published,
            "failures": 0 if error is None else 1,
            "seconds": seconds,
            "error": None if error is None else Jsonb(error),
            "event": event,
            "detail": Jsonb(detail),
        },
    ).fetchone()  # fmt: skip
    if row is None:
        raise lost(lease)
    if row[0]:  # while it was running: no worker is to take it up again
        jobs.cancel(conn, lease.job_id)


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


def ended(conn: Conn, lease: Lease) -> JobState | None:
    """The final state of the job, if it ended in this generation; None: it runs.

    Locks the row. Raises LeaseLost.
    """
    row = conn.execute(
        "SELECT state FROM jobs WHERE id = %(id)s AND lease_generation = %(generation)s"
        " AND state <> 'queued' FOR NO KEY UPDATE",
        _names(lease),
    ).fetchone()
    if row is None:
        raise lost(lease)
    return None if row[0] == JobState.RUNNING else JobState(row[0])


def lost(lease: Lease) -> LeaseLost:
    """The error for a lease that another generation has taken."""
    return LeaseLost(f"job {lease.job_id}: generation {lease.generation} does not hold it any more")


def _names(lease: Lease) -> dict[str, Any]:
    return {"id": lease.job_id, "generation": lease.generation}
