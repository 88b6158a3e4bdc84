"""Which jobs the broker must be told about. The job row is its own outbox.

A row is committed first and published after. What was not published, because the broker
was down or the publisher died, is found here; so is a job whose worker is gone. Messages
that the broker lost can't be seen from here: rows that have waited long although the
broker's queue is empty are found by `forgotten`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from psycopg.rows import class_row

from marco_search.store.connect import Conn


@dataclass(frozen=True, slots=True)
class Message:
    """What the broker is told: run this job."""

    job_id: UUID
    priority: int


def due(conn: Conn, limit: int = 500) -> list[Message]:
    """Jobs that must be published now, locked until the transaction ends.

    Queued ones that were not published since they became due, and running ones that were
    not since their lease ran out. Rows that another sweep holds are left to it.
    """
    queued = _messages(
        conn,
        """
        SELECT id AS job_id, priority FROM jobs
        WHERE state = 'queued' AND (published_at IS NULL OR published_at < run_after)
            AND run_after <= now()
        ORDER BY run_after LIMIT %(limit)s FOR UPDATE SKIP LOCKED
        """,
        {"limit": limit},
    )
    abandoned = _messages(
        conn,
        """
        SELECT id AS job_id, priority FROM jobs
        WHERE state = 'running' AND lease_expires_at < now()
            AND (published_at IS NULL OR published_at < lease_expires_at)
        LIMIT %(limit)s FOR UPDATE SKIP LOCKED
        """,
        {"limit": limit},
    )
    return queued + abandoned


def any_waiting(conn: Conn, waiting_s: float) -> bool:
    """True if a queued job was published more than `waiting_s` ago."""
    row = conn.execute(
        "SELECT EXISTS (SELECT FROM jobs WHERE state = 'queued'"
        " AND published_at < now() - make_interval(secs => %s))",
        [waiting_s],
    ).fetchone()
    return row == (True,)


def forgotten(
    conn: Conn, priorities: Sequence[int], waiting_s: float, limit: int = 500
) -> list[Message]:
    """Queued jobs of these priorities, published more than `waiting_s` ago, locked as above.

    Only to be asked for priorities whose queue is empty: then their messages are lost.
    """
    return _messages(
        conn,
        """
        SELECT id AS job_id, priority FROM jobs
        WHERE state = 'queued' AND published_at < now() - make_interval(secs => %(waiting_s)s)
            AND priority = ANY (%(priorities)s)
        ORDER BY published_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
        """,
        {"priorities": list(priorities), "waiting_s": waiting_s, "limit": limit},
    )


def mark_published(conn: Conn, messages: Sequence[Message]) -> None:
    """Note that the broker has been told."""
    conn.execute(
        """
        WITH told AS (
            UPDATE jobs SET published_at = now() WHERE id = ANY (%s) RETURNING id
        )
        INSERT INTO audit_log (job_id, event) SELECT id, 'published' FROM told
        """,
        [[m.job_id for m in messages]],
    )


def _messages(conn: Conn, query: str, parameters: dict[str, object]) -> list[Message]:
    with conn.cursor(row_factory=class_row(Message)) as cursor:
        return cursor.execute(query, parameters).fetchall()
