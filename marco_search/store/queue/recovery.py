"""Jobs that no worker will end: their lease expired, or their deadline passed in the queue.

The job of a lost worker is queued again. A job that several workers were lost with, without a
stored round in between, is dead, with the error WorkerLost that names them. The database's clock
decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from marco_search.errors import WorkerLost
from marco_search.store.db import Conn
from marco_search.store.queue import jobs
from marco_search.store.queue.states import CHANNEL, JOB_FINISHED, outbox
from marco_search.store.seal import seals

NEVER_BEGUN = {
    "type": "DeadlinePassed",
    "message": "the deadline passed before a worker began the job",
    "retryable": False,
}
"""The error of a job that expired without an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reclaimed:
    """Jobs that were queued again and must be published, and those that are dead now."""

    queued: tuple[UUID, ...] = ()
    quarantined: tuple[UUID, ...] = ()


def reclaim(
    conn: Conn, *, quarantine_after: int, grace_s: float = 0.0, limit: int = 500
) -> Reclaimed:
    """Reclaim running jobs whose lease has expired.

    Nothing is reclaimed in the first `grace_s` seconds after Postgres itself has started: live
    workers get time to extend the leases that they could not extend meanwhile.
    """
    rows: Sequence[tuple[UUID, int, bool]] = conn.execute(
        """
        WITH gone AS (
            SELECT id, lease_owner FROM jobs
            WHERE state = 'running' AND lease_expires_at < now()
                AND pg_postmaster_start_time() <= now() - make_interval(secs => %(grace_s)s)
            LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED
        ), taken AS (
            UPDATE jobs SET state = 'queued', losses = losses + 1, lease_owner = NULL,
                lease_expires_at = NULL, run_after = now(), published_at = NULL
            FROM gone WHERE jobs.id = gone.id
            RETURNING jobs.id, jobs.losses, jobs.lease_generation, gone.lease_owner,
                jobs.cancel_requested_at IS NOT NULL AS cancelled
        ), logged AS (
            INSERT INTO audit_log (job_id, generation, event, detail)
            SELECT id, lease_generation, 'worker_lost', jsonb_build_object('worker', lease_owner)
            FROM taken
        )
        SELECT id, losses, cancelled FROM taken
        """,
        {"grace_s": grace_s, "limit": limit},
    ).fetchall()
    # Cancelled while they ran: no worker should claim them again.
    cancelled = [job_id for job_id, _, asked in rows if asked]
    jobs.cancel(conn, cancelled)
    kept = [(job_id, losses) for job_id, losses, asked in rows if not asked]
    lost = {job_id: _lost_workers(conn, job_id) for job_id, n in kept if n >= quarantine_after}
    dead = tuple(job_id for job_id, workers in lost.items() if len(workers) >= quarantine_after)
    for job_id in dead:
        error = WorkerLost(lost[job_id])
        about = {"type": type(error).__name__, "message": str(error), "retryable": False}
        quarantined = {"id": job_id, "state": "dead", "reason": None}
        _end(conn, "id = %(id)s", quarantined, about | {"workers": lost[job_id]})
    seals.seal(conn, dead)
    return Reclaimed(queued=tuple(i for i, _ in kept if i not in dead), quarantined=dead)


def _lost_workers(conn: Conn, job_id: UUID) -> list[str]:
    """The workers lost since the job last stored a round, or was requeued.

    A job that kills its workers does so in the same round again; one that makes progress between
    two losses is not their cause.
    """
    lost = conn.execute(
        "SELECT detail ->> 'worker' FROM audit_log WHERE job_id = %(id)s AND event = 'worker_lost'"
        " AND id > coalesce((SELECT max(id) FROM audit_log WHERE job_id = %(id)s"
        " AND event IN ('requeued', 'round')), 0) ORDER BY id",
        {"id": job_id},
    )
    return [row[0] for row in lost]


def expire_unbegun(conn: Conn, limit: int = 1000) -> int:
    """End queued jobs that are past their deadline and have no rounds; returns how many.

    Those with rounds have answers to be ranked: see `leases.claim_ending`.
    """
    late = """finished_at IS NULL AND expires_at <= now() AND state = 'queued' AND rounds = 0
        LIMIT %(limit)s"""
    ended = _end(
        conn, late, {"limit": limit, "state": "expired", "reason": "deadline"}, NEVER_BEGUN
    )
    seals.seal(conn, ended)
    return len(ended)


def _end(conn: Conn, which: str, given: dict[str, Any], error: dict[str, Any]) -> list[UUID]:
    """End the jobs that match the condition `which`; the caller seals them."""
    rows = conn.execute(
        f"""
        WITH chosen AS (SELECT id FROM jobs WHERE {which} FOR NO KEY UPDATE SKIP LOCKED), ended AS (
            UPDATE jobs SET state = %(state)s, finished_at = now(), stop_reason = %(reason)s,
                parked_at = NULL, last_error = %(error)s
            FROM chosen WHERE jobs.id = chosen.id RETURNING jobs.id, tenant, lease_generation
        ), logged AS (
            INSERT INTO audit_log (job_id, generation, event, detail)
            SELECT id, CASE WHEN %(state)s = 'dead' THEN lease_generation END, %(state)s, %(error)s
            FROM ended
        ), {outbox(JOB_FINISHED, "SELECT id, tenant FROM ended")}
        SELECT id, pg_notify(%(channel)s, id::text) FROM ended
        """.encode(),  # noqa: S608  # constants
        given | {"error": Jsonb(error), "channel": CHANNEL},
    )
    return [row[0] for row in rows]
