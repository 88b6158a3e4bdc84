"""Queued jobs whose deadline has passed. The database's clock decides, no worker's.

A job that was never begun ends here. One that was has answers to be ranked: whoever finds
it claims it and ends it from its trail (worker.closing).
"""

from __future__ import annotations

from uuid import UUID

from psycopg.types.json import Jsonb

from marco_search.store.db import Conn
from marco_search.store.queue.states import CHANNEL
from marco_search.store.seal import seals

NEVER_BEGUN = {
    "type": "DeadlinePassed",
    "message": "the deadline passed before a worker began the job",
    "retryable": False,
}
"""The error of a job that expired without an answer."""


def expire_unbegun(conn: Conn, limit: int = 1000) -> int:
    """End queued jobs that are past their deadline and have no round; how many there were."""
    ended = conn.execute(
        """
        WITH late AS (
            SELECT id FROM jobs
            WHERE finished_at IS NULL AND expires_at <= now() AND state = 'queued' AND rounds = 0
            LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED
        ), ended AS (
            UPDATE jobs SET state = 'expired', finished_at = now(), stop_reason = 'deadline',
                parked_at = NULL, last_error = %(error)s
            FROM late WHERE jobs.id = late.id RETURNING jobs.id
        ), logged AS (
            INSERT INTO audit_log (job_id, event, detail) SELECT id, 'expired', %(error)s FROM ended
        )
        SELECT id, pg_notify(%(channel)s, id::text) FROM ended
        """,
        {"limit": limit, "error": Jsonb(NEVER_BEGUN), "channel": CHANNEL},
    ).fetchall()
    seals.seal(conn, [row[0] for row in ended])
    return len(ended)


def begun(conn: Conn) -> UUID | None:
    """A queued job to be ended that has rounds, locked: it is past its deadline, or was
    cancelled. None: there is none.
    """
    for which in ("finished_at IS NULL AND expires_at <= now()", "cancel_requested_at IS NOT NULL"):
        row = conn.execute(
            f"SELECT id FROM jobs WHERE {which} AND state = 'queued' AND rounds > 0"  # noqa: S608
            " LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED"
        ).fetchone()
        if row:
            return UUID(str(row[0]))
    return None
