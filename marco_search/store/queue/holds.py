"""Pausing: of a job, of a tenant, of everything.

A paused queued job is not claimed. The worker of a running one finishes its round and gives
the job back. Deadlines go on: a paused job expires like any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from psycopg.rows import class_row

from marco_search.errors import JobNotFound
from marco_search.store.db import Conn
from marco_search.store.queue.states import JobState

EVERYONE = ""
"""In place of a tenant's name: all tenants."""


def set_job(conn: Conn, job_id: UUID, *, paused: bool, tenant: str | None = None) -> JobState:
    """Pause a job, or let it go on; its state now. One that has ended stays as it is.

    `tenant` restricts whose jobs are seen. The caller publishes a job that goes on. Raises
    JobNotFound.
    """
    row = conn.execute(
        """
        WITH changed AS (
            UPDATE jobs SET paused_at = CASE WHEN %(paused)s THEN now() END,
                published_at = CASE WHEN run_after <= now() THEN now() END
            WHERE id = %(id)s AND finished_at IS NULL AND (paused_at IS NULL) = %(paused)s
                AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s)
            RETURNING id
        ), logged AS (
            INSERT INTO audit_log (job_id, event) SELECT id, %(event)s FROM changed
        )
        SELECT state FROM jobs
        WHERE id = %(id)s AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s)
        """,
        {
            "id": job_id,
            "tenant": tenant,
            "paused": paused,
            "event": "paused" if paused else "resumed",
        },
    ).fetchone()
    if row is None:
        raise JobNotFound(f"no job {job_id}" + (f" of tenant {tenant!r}" if tenant else ""))
    return JobState(row[0])


def set_tenant(conn: Conn, tenant: str, *, paused: bool) -> None:
    """Pause a tenant (or EVERYONE), or let it go on. Pauses of single jobs stay."""
    conn.execute(
        "INSERT INTO tenants (name, paused_at) VALUES (%(name)s, CASE WHEN %(paused)s THEN now()"
        " END) ON CONFLICT (name) DO UPDATE SET paused_at = CASE WHEN %(paused)s"
        " THEN coalesce(tenants.paused_at, now()) END",
        {"name": tenant, "paused": paused},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Whose jobs are held back."""

    tenant: str  # EVERYONE: all tenants
    since: datetime | None  # of the tenant; None: only jobs by themselves
    jobs: int  # that are paused one by one


def pauses(conn: Conn) -> list[Pause]:
    """All that is paused, by tenant; EVERYONE first."""
    with conn.cursor(row_factory=class_row(Pause)) as cursor:
        return cursor.execute(
            """
            SELECT tenant, max(since) AS since, sum(jobs)::bigint AS jobs FROM (
                SELECT name AS tenant, paused_at AS since, 0 AS jobs FROM tenants
                WHERE paused_at IS NOT NULL
                UNION ALL SELECT tenant, NULL, count(*) FROM jobs
                WHERE paused_at IS NOT NULL AND finished_at IS NULL GROUP BY tenant
            ) AS paused GROUP BY tenant ORDER BY tenant
            """
        ).fetchall()


def due(conn: Conn, tenant: str, limit: int = 1000) -> list[UUID]:
    """Jobs of a tenant (or of EVERYONE) that are due, now marked as published: the caller
    publishes them when it goes on. What is left, a sweep finds.
    """
    rows = conn.execute(
        "UPDATE jobs SET published_at = now() WHERE id IN (SELECT id FROM jobs"
        " WHERE state = 'queued' AND paused_at IS NULL AND run_after <= now()"
        " AND (%(tenant)s = '' OR tenant = %(tenant)s) ORDER BY turn_at LIMIT %(limit)s"
        " FOR NO KEY UPDATE SKIP LOCKED) RETURNING id",
        {"tenant": tenant, "limit": limit},
    )
    return [row[0] for row in rows]
