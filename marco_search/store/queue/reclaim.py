"""Takes jobs back from workers that are gone, and from the third worker they would cost.

A lease that ran out without being released means that its worker was lost: the job is queued
again. A job that cost several workers without keeping a round in between is not given to another:
it is dead, with the error WorkerLost that names them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from psycopg.types.json import Jsonb

from marco_search.errors import WorkerLost
from marco_search.store.db import Conn
from marco_search.store.queue import jobs
from marco_search.store.queue.states import CHANNEL
from marco_search.store.seal import seals


@dataclass(frozen=True, slots=True, kw_only=True)
class Reclaimed:
    """What one look found. The queued ones must be published."""

    queued: tuple[UUID, ...] = ()
    quarantined: tuple[UUID, ...] = ()


def reclaim(
    conn: Conn,
    *,
    quarantine_after: int,
    grace_s: float = 0.0,
    job_id: UUID | None = None,
    limit: int = 500,
) -> Reclaimed:
    """Take back running jobs whose lease ran out; only `job_id`, if given.

    Nothing is taken back in the first `grace_s` seconds after Postgres itself has started:
    workers that live get time to extend the leases they could not extend meanwhile.
    """
    rows: Sequence[tuple[UUID, int, bool]] = conn.execute(
        """
        WITH gone AS (
            SELECT id, lease_owner FROM jobs
            WHERE state = 'running' AND lease_expires_at < now()
                AND (%(id)s::uuid IS NULL OR id = %(id)s)
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
        {"id": job_id, "grace_s": grace_s, "limit": limit},
    ).fetchall()
    # Asked for while they ran: no worker is to take them up again.
    unwanted = tuple(job for job, _, cancelled in rows if cancelled)
    jobs.cancel_many(conn, unwanted)
    costly = {
        job: _lost_workers(conn, job)
        for job, losses, cancelled in rows
        if losses >= quarantine_after and not cancelled
    }
    suspects = tuple(job for job, workers in costly.items() if len(workers) >= quarantine_after)
    for suspect in suspects:
        _quarantine(conn, suspect, costly[suspect])
    seals.seal(conn, suspects)
    queued = tuple(job for job, _, _ in rows if job not in suspects and job not in unwanted)
    return Reclaimed(queued=queued, quarantined=suspects)


def _lost_workers(conn: Conn, job_id: UUID) -> list[str]:
    """The workers lost since the job last kept a round, or was requeued.

    A job that kills its workers does so in the same round again; one that gets on between two
    losses is not to blame for them.
    """
    lost = conn.execute(
        "SELECT detail ->> 'worker' FROM audit_log WHERE job_id = %(id)s AND event = 'worker_lost'"
        " AND id > coalesce((SELECT max(id) FROM audit_log WHERE job_id = %(id)s"
        " AND event IN ('requeued', 'round')), 0) ORDER BY id",
        {"id": job_id},
    ).fetchall()
    return [row[0] for row in lost]


def _quarantine(conn: Conn, job_id: UUID, workers: Sequence[str]) -> None:
    error = WorkerLost(workers)
    about = {"type": type(error).__name__, "message": str(error), "retryable": False}
    conn.execute(
        """
        WITH ended AS (
            UPDATE jobs SET state = 'dead', finished_at = now(), last_error = %(error)s
            WHERE id = %(id)s RETURNING id, lease_generation
        ), logged AS (
            INSERT INTO audit_log (job_id, generation, event, detail)
            SELECT id, lease_generation, 'dead', %(error)s FROM ended
        )
        SELECT pg_notify(%(channel)s, id::text) FROM ended
        """,
        {"id": job_id, "error": Jsonb(about | {"workers": list(workers)}), "channel": CHANNEL},
    )
