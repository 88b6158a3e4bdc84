"""Dead letters: jobs that are dead (attempts used up, or quarantined) or failed.

A requeued job continues from its last stored round. A restart creates a new job, on the model
that workers have now; the old job is cancelled, and an event of each names the other.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from marco_search.store.db import Conn, select
from marco_search.store.queue import jobs
from marco_search.store.queue.jobs import AGING_S
from marco_search.store.queue.states import SUBJECT

# A job without its texts, or without its rounds, can't be continued.
_GOES_ON = """redacted_at IS NULL
    AND NOT EXISTS (SELECT FROM archives WHERE first <= jobs.id AND jobs.id < before)"""


class DeadLetter(BaseModel):
    """A dead or failed job, and why.

    Fields:
    job_id, tenant, kind, state: Which job, whose, of what kind; "dead" or "failed"
    subject: The question, text or prompt
    created_at, finished_at: When it was submitted, and when it ended
    attempts: Claims by workers, of which `failures` ended in an error, `losses` in a lost worker
    rounds: Rounds stored, from which a requeued job continues
    error: type, message and retryable; traceback if it is a bug
    """

    model_config = ConfigDict(frozen=True)

    job_id: UUID
    tenant: str
    kind: str
    state: str
    subject: str
    created_at: datetime
    finished_at: datetime
    attempts: int
    failures: int
    losses: int
    rounds: int
    error: dict[str, Any]


def letters(
    conn: Conn,
    *,
    tenant: str | None = None,
    state: str | None = None,
    error: str | None = None,
    job_id: UUID | None = None,
    requeueable: bool = False,
    before: DeadLetter | None = None,
    limit: int = 100,
) -> list[DeadLetter]:
    """Dead letters, latest first; optionally of a tenant, `state`, type of error, or job.

    `requeueable`: without those that `requeue` ignores. `before`: those further down than it.
    """
    source = f"""(
        SELECT *, id AS job_id, {SUBJECT} AS subject, coalesce(last_error, '{{}}') AS error
        FROM jobs WHERE state IN ('failed', 'dead') AND {_GOES_ON if requeueable else "true"}
    ) AS letter
    WHERE (%(tenant)s::text IS NULL OR tenant = %(tenant)s)
        AND (%(state)s::text IS NULL OR state = %(state)s)
        AND (%(error)s::text IS NULL OR error ->> 'type' = %(error)s)
        AND (%(job)s::uuid IS NULL OR id = %(job)s)
        AND (%(last)s::uuid IS NULL OR (finished_at, id) < (%(ended)s, %(last)s))
    ORDER BY finished_at DESC, id DESC LIMIT %(limit)s"""  # noqa: S608  # constants
    given: dict[str, Any] = {"tenant": tenant, "state": state, "error": error, "job": job_id}
    given |= {"last": before and before.job_id, "ended": before and before.finished_at}
    given["limit"] = limit
    return select(conn, DeadLetter, source, given)


def requeue(
    conn: Conn, job_ids: Sequence[UUID], *, tenant: str | None = None, aging_s: float = AGING_S
) -> list[UUID]:
    """Queue dead and failed jobs again; returns which these were. The caller publishes them.

    Counters are reset, and a deadline that has passed is dropped.
    """
    # A separate statement: a single one would not see that a job was archived while it waited.
    conn.execute(
        "SELECT FROM jobs WHERE id = ANY (%s) ORDER BY id FOR NO KEY UPDATE", [list(job_ids)]
    )
    rows = conn.execute(
        f"""
        WITH requeued AS (
            UPDATE jobs SET state = 'queued', failures = 0, losses = 0, finished_at = NULL,
                cancel_requested_at = NULL, paused_at = NULL, stop_reason = NULL,
                run_after = now(), published_at = now(),
                turn_at = now() + make_interval(secs => priority / 3.0 * %(aging_s)s),
                expires_at = CASE WHEN expires_at > now() THEN expires_at END
            WHERE id = ANY (%(ids)s) AND state IN ('failed', 'dead')
                AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s)
                AND {_GOES_ON}
            RETURNING id, batch_id, last_error ->> 'type' AS error
        ), logged AS (
            INSERT INTO audit_log (job_id, generation, event, detail)
            SELECT id, NULL, 'requeued', jsonb_build_object('after', error) FROM requeued
        ), reopened AS (
            -- In order: else two of these may wait for each other.
            UPDATE batches SET finished_at = NULL WHERE id = ANY (ARRAY(
                SELECT id FROM batches WHERE id IN (
                    SELECT batch_id FROM requeued UNION ALL
                    SELECT l.batch_id FROM batch_lines AS l JOIN requeued AS r ON r.id = l.known_id
                ) ORDER BY id FOR NO KEY UPDATE
            ))
        )
        SELECT id FROM requeued
        """,  # noqa: S608  # a constant
        {"ids": list(job_ids), "tenant": tenant, "aging_s": aging_s},
    )
    return [row[0] for row in rows]


def restart(
    conn: Conn, job_ids: Sequence[UUID], *, tenant: str | None = None, aging_s: float = AGING_S
) -> dict[UUID, UUID]:
    """Restart jobs that are dead, failed, or queued after a start; old id to new id.

    Others are ignored. The caller publishes the new jobs (see `jobs.copy`).
    """
    requeue(conn, job_ids, tenant=tenant, aging_s=aging_s)
    begun = """id = ANY (%(ids)s) AND state = 'queued' AND cancel_requested_at IS NULL
        AND (begun_on <> '' OR attempts > 0)
        AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s) ORDER BY id FOR NO KEY UPDATE"""
    copies = jobs.copy(conn, begun, {"ids": list(job_ids), "tenant": tenant}, aging_s)
    # Last: it seals those that end.
    events = {old: {"restarted_as": str(new)} for old, new in copies.items()}
    jobs.cancel(conn, copies, detail=events)
    return copies


def parked(conn: Conn, *, tenant: str | None = None, limit: int = 1000) -> list[UUID]:
    """Queued jobs that wait for a worker with the model they were started on, oldest first."""
    rows = conn.execute(
        "SELECT id FROM jobs WHERE state = 'queued' AND parked_at IS NOT NULL"
        " AND cancel_requested_at IS NULL AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s)"
        " ORDER BY id LIMIT %(limit)s",
        {"tenant": tenant, "limit": limit},
    )
    return [row[0] for row in rows]
