"""Jobs that were given up: dead (attempts used up, or quarantined) and failed.

Requeued, a job goes on from its last kept round, with fresh counters. What happened before
stays in the audit log.

Restarted, it begins anew, as a job of its own: what was kept belongs to the model that it was
begun on. That is also a way out for a begun job that waits for a model nobody has any more. The
old job is cancelled and keeps its trail; an event of each names the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.rows import class_row
from pydantic import BaseModel, ConfigDict

from marco_search.errors import JobNotFound
from marco_search.store.db import Conn
from marco_search.store.queue import jobs
from marco_search.store.queue.jobs import AGING_S, new_job_id
from marco_search.store.queue.states import SUBJECT


class DeadLetter(BaseModel):
    """A job that was given up, and why. Bugs have a traceback."""

    model_config = ConfigDict(frozen=True)

    job_id: UUID
    tenant: str
    kind: str
    state: str  # dead or failed
    subject: str  # the question, text or prompt
    created_at: datetime
    finished_at: datetime
    attempts: int
    failures: int
    losses: int
    rounds: int  # kept: a requeued job goes on from them
    error: dict[str, Any]  # type, message, retryable; of a bug the traceback


_LETTERS = """
    SELECT id AS job_id, tenant, kind, state,
        SUBJECT AS subject,
        created_at, finished_at, attempts, failures, losses, rounds,
        coalesce(last_error, '{}') AS error
    FROM jobs WHERE state IN ('failed', 'dead')
        AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s)
""".replace("SUBJECT", SUBJECT)


def letters(
    conn: Conn,
    *,
    tenant: str | None = None,
    state: str | None = None,
    error: str | None = None,
    limit: int = 100,
) -> list[DeadLetter]:
    """The latest first; only those in `state`, and with an error of this type, if given."""
    with conn.cursor(row_factory=class_row(DeadLetter)) as cursor:
        return cursor.execute(
            _LETTERS + " AND (%(state)s::text IS NULL OR state = %(state)s)"
            " AND (%(error)s::text IS NULL OR last_error ->> 'type' = %(error)s)"
            " ORDER BY finished_at DESC, id DESC LIMIT %(limit)s",
            {"tenant": tenant, "state": state, "error": error, "limit": limit},
        ).fetchall()


def letter(conn: Conn, job_id: UUID, *, tenant: str | None = None) -> DeadLetter:
    """One of them. Raises JobNotFound if the job does not exist or was not given up."""
    with conn.cursor(row_factory=class_row(DeadLetter)) as cursor:
        found = cursor.execute(
            _LETTERS + " AND id = %(id)s", {"tenant": tenant, "id": job_id}
        ).fetchone()
    if found is None:
        raise JobNotFound(f"job {job_id} is not among those that were given up (`marco dead list`)")
    return found


def requeue(
    conn: Conn, job_ids: Sequence[UUID], *, tenant: str | None = None, aging_s: float = AGING_S
) -> list[UUID]:
    """Queue those of the jobs that were given up; which they were. The caller publishes them.

    Counters start again, and a deadline that has passed is dropped.
    """
    rows = conn.execute(
        """
        WITH requeued AS (
            UPDATE jobs SET state = 'queued', failures = 0, losses = 0, finished_at = NULL,
                cancel_requested_at = NULL, paused_at = NULL, stop_reason = NULL,
                run_after = now(), published_at = now(),
                turn_at = now() + make_interval(secs => priority / 3.0 * %(aging_s)s),
                expires_at = CASE WHEN expires_at > now() THEN expires_at END
            WHERE id = ANY (%(ids)s) AND state IN ('failed', 'dead')
                AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s)
                -- One that was archived has no rounds left to go on from.
                AND NOT EXISTS (SELECT FROM archives WHERE first <= jobs.id AND jobs.id < before)
            RETURNING id, lease_generation, last_error ->> 'type' AS error
        ), logged AS (
            INSERT INTO audit_log (job_id, generation, event, detail)
            SELECT id, NULL, 'requeued', jsonb_build_object('after', error) FROM requeued
        )
        SELECT id FROM requeued
        """,
        {"ids": list(job_ids), "tenant": tenant, "aging_s": aging_s},
    )
    return [row[0] for row in rows]


def restart(
    conn: Conn, job_ids: Sequence[UUID], *, tenant: str | None = None, aging_s: float = AGING_S
) -> dict[UUID, UUID]:
    """Begin jobs anew that were given up, or are queued and begun: old id to new id.

    Others are left out. The caller publishes the new jobs. A new job has the old one's request,
    tenant, priority, batch and expected answer; a deadline that has passed is dropped, and the
    idempotency key stays with the old job.
    """
    requeue(conn, job_ids, tenant=tenant, aging_s=aging_s)
    rows = conn.execute(
        "SELECT id FROM jobs WHERE id = ANY (%(ids)s) AND state = 'queued'"
        " AND cancel_requested_at IS NULL AND (begun_on <> '' OR attempts > 0)"
        " AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s) ORDER BY id FOR NO KEY UPDATE",
        {"ids": list(job_ids), "tenant": tenant},
    ).fetchall()
    renewed = {row[0]: new_job_id() for row in rows}
    _insert_anew(conn, renewed, aging_s)
    # Last: it seals those that end.
    events = {old: {"restarted_as": str(new)} for old, new in renewed.items()}
    jobs.cancel_many(conn, renewed, detail=events)
    return renewed


def _insert_anew(conn: Conn, renewed: Mapping[UUID, UUID], aging_s: float) -> None:
    conn.execute(
        """
        WITH created AS (
            INSERT INTO jobs (id, tenant, kind, priority, payload, expected, payload_hash, batch_id,
                turn_at, expires_at, published_at)
            SELECT given.new, tenant, kind, priority, payload, expected, payload_hash, batch_id,
                now() + make_interval(secs => priority / 3.0 * %(aging_s)s),
                CASE WHEN expires_at > now() THEN expires_at END, now()
            FROM jobs JOIN unnest(%(old)s::uuid[], %(new)s::uuid[]) AS given (old, new)
                ON id = given.old
        )
        INSERT INTO audit_log (job_id, event, detail)
        SELECT new, 'submitted', jsonb_build_object('restart_of', old)
        FROM unnest(%(old)s::uuid[], %(new)s::uuid[]) AS given (old, new)
        """,
        {"old": list(renewed), "new": list(renewed.values()), "aging_s": aging_s},
    )


def parked(conn: Conn, *, tenant: str | None = None, limit: int = 1000) -> list[UUID]:
    """Queued jobs that wait for a worker with the model they were begun on, the oldest first."""
    rows = conn.execute(
        "SELECT id FROM jobs WHERE state = 'queued' AND parked_at IS NOT NULL"
        " AND cancel_requested_at IS NULL AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s)"
        " ORDER BY id LIMIT %(limit)s",
        {"tenant": tenant, "limit": limit},
    )
    return [row[0] for row in rows]
