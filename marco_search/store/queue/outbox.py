"""Which jobs the broker must be told about. The job row is its own outbox.

A row is committed first, marked as published, and published after. What was not, because
the broker was down, is marked as unpublished again and found by `due`; so is a job that
became due later. Messages that the broker or a dying process lost can't be seen from here:
rows that have waited although the broker's queue is empty are found by `forgotten`.

Rows are never locked while the broker is spoken to: a worker skips locked rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from psycopg.rows import class_row

from marco_search.store.db import Conn

_DUE = """
    state = 'queued' AND run_after <= now() AND paused_at IS NULL
    AND tenant NOT IN (SELECT name FROM tenants WHERE paused_at IS NOT NULL)
    AND NOT EXISTS (SELECT FROM tenants WHERE name = '' AND paused_at IS NOT NULL)
"""
_UNPUBLISHED = f"SELECT id FROM jobs WHERE {_DUE} AND published_at IS NULL ORDER BY run_after"  # noqa: S608
_FORGOTTEN = f"""
    SELECT id FROM jobs WHERE {_DUE} AND parked_at IS NULL
        AND published_at < now() - make_interval(secs => %(waiting_s)s)
    ORDER BY published_at
"""  # noqa: S608  # constants


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """What there is to do for a sweep. All false on an idle database."""

    due: bool  # jobs to publish
    lost: bool  # leases that ran out
    expired: bool  # deadlines that passed, and begun jobs that were cancelled while queued
    waiting: bool  # jobs that were published, and not claimed for a while

    def __bool__(self) -> bool:
        return self.due or self.lost or self.expired or self.waiting


def pulse(conn: Conn, waiting_s: float) -> Pulse:
    """Look whether there is anything to do, in one statement."""
    with conn.cursor(row_factory=class_row(Pulse)) as cursor:
        found = cursor.execute(
            f"""
            SELECT
                ({_UNPUBLISHED} LIMIT 1) IS NOT NULL AS due,
                EXISTS (SELECT FROM jobs WHERE state = 'running'
                    AND lease_expires_at < now()) AS lost,
                EXISTS (SELECT FROM jobs WHERE finished_at IS NULL AND expires_at <= now()
                    AND state = 'queued')
                OR EXISTS (SELECT FROM jobs WHERE state = 'queued'
                    AND cancel_requested_at IS NOT NULL) AS expired,
                ({_FORGOTTEN} LIMIT 1) IS NOT NULL AS waiting
            """,  # noqa: S608  # a constant
            {"waiting_s": waiting_s},
        ).fetchone()
    assert found is not None
    return found


def due(conn: Conn, limit: int = 500) -> list[UUID]:
    """Queued jobs that were not published since they became due, now marked as published.

    The earliest due first. Rows that another sweep holds are left to it.
    """
    rows = conn.execute(
        f"""
        WITH found AS ({_UNPUBLISHED} LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED)
        UPDATE jobs SET published_at = now() FROM found WHERE jobs.id = found.id
        RETURNING jobs.id
        """,  # noqa: S608  # a constant
        {"limit": limit},
    )
    return [row[0] for row in rows]


def forgotten(conn: Conn, waiting_s: float, limit: int = 500) -> list[UUID]:
    """Due jobs published more than `waiting_s` ago, now marked as published again.

    Only to be asked when the broker's queue is empty: then their messages are lost.
    """
    rows = conn.execute(
        f"""
        WITH found AS ({_FORGOTTEN} LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED)
        UPDATE jobs SET published_at = now() FROM found WHERE jobs.id = found.id
        RETURNING jobs.id
        """,  # noqa: S608  # a constant
        {"waiting_s": waiting_s, "limit": limit},
    )
    return [row[0] for row in rows]


def parked(conn: Conn) -> list[UUID]:
    """One job of each model that no worker had lately. A message for each now and then finds
    out whether one has it again; the rows are left as they are.
    """
    rows = conn.execute(
        "SELECT DISTINCT ON (begun_on) id FROM jobs"
        " WHERE state = 'queued' AND parked_at IS NOT NULL AND paused_at IS NULL"
        " ORDER BY begun_on, id"
    )
    return [row[0] for row in rows]


def unpublished(conn: Conn, job_ids: Sequence[UUID]) -> None:
    """The broker could not be told after all: a sweep will."""
    conn.execute(
        "UPDATE jobs SET published_at = NULL WHERE id = ANY (%s) AND state = 'queued'",
        [list(job_ids)],
    )


def log_published(conn: Conn, job_ids: Sequence[UUID]) -> None:
    """Note in the audit log that a sweep published these jobs.

    Not of those that have ended since: nothing is logged after the end.
    """
    conn.execute(
        "INSERT INTO audit_log (job_id, event) SELECT id, 'published' FROM ("
        " SELECT id FROM jobs WHERE id = ANY (%s) AND finished_at IS NULL ORDER BY id FOR SHARE"
        ") AS open",
        [list(job_ids)],
    )
