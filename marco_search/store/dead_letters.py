"""Jobs that were given up: dead (attempts used up, or quarantined) and failed.

Requeued, a job goes on from its last kept round, with fresh counters. What happened before
stays in the audit log.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.rows import class_row
from pydantic import BaseModel, ConfigDict

from marco_search.errors import JobNotFound
from marco_search.store.connect import Conn
from marco_search.store.jobs import AGING_S


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
        coalesce(payload ->> 'question', payload ->> 'text', payload ->> 'prompt') AS subject,
        created_at, finished_at, attempts, failures, losses, rounds,
        coalesce(last_error, '{}') AS error
    FROM jobs WHERE state IN ('failed', 'dead')
        AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s)
"""


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
