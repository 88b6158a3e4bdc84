"""Fair-share scheduling with priority aging: which job is next, and which must be published.

A message says that some job is due, not which: the worker that receives it claims the next job.
The tenant with the fewest running jobs comes first, then the one whose first job has waited
longest. Within a tenant the job with the smallest `turn_at` is next: the time of submission, plus
`aging_s` for each level of priority below high, so that none waits forever.

A started job continues only on its own model. So each tenant has several queues in the index:
one of the jobs not started yet, and one for each model. A worker reads the first and its own.

The job row is its own outbox: it is committed first, marked as published, and published after
that. If the broker was down it is unmarked and found by `due`; if the broker lost the message, by
`stale_published`. No row is locked while talking to the broker, since workers skip locked rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from marco_search.store.db import Conn, select
from marco_search.store.queue.batches import ENDED

_CLAIMABLE = "state = 'queued' AND paused_at IS NULL AND published_at IS NOT NULL"
# From tenant to tenant, not job by job. ORDER BY names the columns of the index, so that no
# other is taken.
_ORDER = f"""
    WITH RECURSIVE named (tenant) AS (
        (SELECT tenant FROM jobs WHERE {_CLAIMABLE}
            ORDER BY tenant, begun_on, turn_at, id LIMIT 1)
        UNION ALL
        SELECT (SELECT tenant FROM jobs WHERE {_CLAIMABLE} AND tenant > named.tenant
            ORDER BY tenant, begun_on, turn_at, id LIMIT 1)
        FROM named WHERE named.tenant IS NOT NULL
    ), busy AS (
        SELECT tenant, count(*) AS running FROM jobs WHERE state = 'running' GROUP BY tenant
    )
    SELECT named.tenant, queue.begun_on
    FROM named LEFT JOIN busy USING (tenant)
    CROSS JOIN unnest(%(begun_on)s::text[]) AS queue (begun_on) CROSS JOIN LATERAL (
        SELECT turn_at, id FROM jobs
        WHERE {_CLAIMABLE} AND tenant = named.tenant AND begun_on = queue.begun_on
            AND run_after <= now()
        ORDER BY turn_at, id LIMIT 1
    ) AS first
    WHERE named.tenant IS NOT NULL AND NOT EXISTS (
        SELECT FROM tenants WHERE name IN ('', named.tenant) AND paused_at IS NOT NULL
    )
    ORDER BY coalesce(busy.running, 0), first.turn_at, first.id
"""  # noqa: S608  # constants, here and below

FIRST = f"""id = (
    SELECT due.id FROM ({_ORDER}) AS queue CROSS JOIN LATERAL (
        SELECT id FROM jobs
        WHERE {_CLAIMABLE} AND tenant = queue.tenant AND begun_on = queue.begun_on
            AND run_after <= now()
        ORDER BY turn_at, id LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
    ) AS due LIMIT 1
)"""  # noqa: S608
"""Condition on `jobs`: the next one in the queues %(begun_on)s that no other worker is claiming.

Goes through the queues in order: a join with LATERAL and LIMIT is a nested loop.
"""

NOT_BEGUN = ""
"""The queue of the jobs that are not started, for any model."""


def key(model: str, revision: str) -> str:
    """The queue of the jobs that were started on this model."""
    return f"{model} {revision}"


def park(conn: Conn, begun_on: str) -> None:
    """A worker with this model found nothing to do: mark one due job that needs another model.

    It gets no more messages: there is one message per job, and this worker has consumed its.
    """
    conn.execute(
        """
        UPDATE jobs SET parked_at = now() WHERE id = (
            SELECT id FROM jobs
            WHERE state = 'queued' AND begun_on <> '' AND parked_at IS NULL
                AND begun_on <> %(begun_on)s AND published_at IS NOT NULL AND paused_at IS NULL
                AND run_after <= now()
            LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
        )
        """,
        {"begun_on": begun_on},
    )


def unpark(conn: Conn, begun_on: str, limit: int = 100) -> None:
    """A worker has this model: let jobs that waited for it be published again."""
    conn.execute(
        """
        UPDATE jobs SET parked_at = NULL, published_at = NULL WHERE id IN (
            SELECT id FROM jobs
            WHERE state = 'queued' AND parked_at IS NOT NULL AND begun_on = %(begun_on)s
            LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED
        )
        """,
        {"begun_on": begun_on, "limit": limit},
    )


DUE = """
    state = 'queued' AND run_after <= now() AND paused_at IS NULL
    AND tenant NOT IN (SELECT name FROM tenants WHERE paused_at IS NOT NULL)
    AND NOT EXISTS (SELECT FROM tenants WHERE name = '' AND paused_at IS NOT NULL)
"""
"""Condition on a job: a worker may begin it, or go on with it, now."""
_UNPUBLISHED = f"SELECT id FROM jobs WHERE {DUE} AND published_at IS NULL ORDER BY run_after"  # noqa: S608
_STALE = f"""
    SELECT id FROM jobs WHERE {DUE} AND parked_at IS NULL
        AND published_at < now() - make_interval(secs => %(stale_s)s)
    ORDER BY published_at
"""  # noqa: S608


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingWork:
    """The work that a scheduler finds. All false on an idle database."""

    due: bool = False  #: jobs to publish
    lost: bool = False  #: leases that ran out
    ending: bool = False  #: deadlines that passed, and begun jobs cancelled while queued
    stale: bool = False  #: jobs published a while ago and not claimed since
    batches: bool = False  #: those that have ended and are not marked yet


def poll_pending(conn: Conn, stale_s: float) -> PendingWork:
    """Check whether there is anything to do, in one statement."""
    source = f"""(
        SELECT ({_UNPUBLISHED} LIMIT 1) IS NOT NULL AS due,
            EXISTS (SELECT FROM jobs WHERE state = 'running' AND lease_expires_at < now()) AS lost,
            EXISTS (SELECT FROM jobs WHERE finished_at IS NULL AND expires_at <= now()
                AND state = 'queued')
            OR EXISTS (SELECT FROM jobs WHERE state = 'queued'
                AND cancel_requested_at IS NOT NULL) AS ending,
            ({_STALE} LIMIT 1) IS NOT NULL AS stale,
            EXISTS (SELECT FROM batches WHERE {ENDED}) AS batches
    ) AS pending"""  # noqa: S608
    return select(conn, PendingWork, source, {"stale_s": stale_s})[0]


def due(conn: Conn, limit: int = 500) -> list[UUID]:
    """Queued jobs not published since they became due, now marked as published.

    Earliest due first. Rows locked by another scheduler are left to it.
    """
    return _mark_published(conn, _UNPUBLISHED, limit)


def stale_published(conn: Conn, stale_s: float, limit: int = 500) -> list[UUID]:
    """Due jobs published more than `stale_s` ago, now marked as published again.

    Only to be called when the broker's queue is empty, which means that their messages are lost.
    """
    return _mark_published(conn, _STALE, limit, stale_s=stale_s)


def resumed(conn: Conn, tenant: str, limit: int = 1000) -> list[UUID]:
    """Due jobs of a tenant (or of EVERYONE) that was resumed, now marked as published.

    Any beyond `limit` are found by `stale_published`.
    """
    query = f"SELECT id FROM jobs WHERE {DUE} AND %(tenant)s IN ('', tenant) ORDER BY turn_at"  # noqa: S608
    return _mark_published(conn, query, limit, tenant=tenant)


def _mark_published(conn: Conn, query: str, limit: int, **given: object) -> list[UUID]:
    rows = conn.execute(
        f"WITH found AS ({query} LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED)"  # noqa: S608
        " UPDATE jobs SET published_at = now() FROM found WHERE jobs.id = found.id"
        " RETURNING jobs.id".encode(),
        given | {"limit": limit},
    )
    return [row[0] for row in rows]


def one_parked_each(conn: Conn) -> list[UUID]:
    """One job for each model that no worker has had lately. An occasional message for each finds
    out whether a worker has it again; the rows do not change.
    """
    rows = conn.execute(
        "SELECT DISTINCT ON (begun_on) id FROM jobs"
        " WHERE state = 'queued' AND parked_at IS NOT NULL AND paused_at IS NULL"
        " ORDER BY begun_on, id"
    )
    return [row[0] for row in rows]


def unpublished(conn: Conn, job_ids: Sequence[UUID]) -> None:
    """Unmark jobs as the broker could not be reached: a scheduler will publish them."""
    # In order: otherwise this may deadlock with a cancellation.
    conn.execute(
        "UPDATE jobs SET published_at = NULL WHERE id = ANY (ARRAY("
        " SELECT id FROM jobs WHERE id = ANY (%s) AND state = 'queued'"
        " ORDER BY id FOR NO KEY UPDATE))",
        [list(job_ids)],
    )


def log_published(conn: Conn, job_ids: Sequence[UUID]) -> None:
    """Note in the audit log that a scheduler published these jobs.

    Jobs that have ended since are left out: nothing is logged after the end.
    """
    conn.execute(
        "INSERT INTO audit_log (job_id, event) SELECT id, 'published' FROM ("
        " SELECT id FROM jobs WHERE id = ANY (%s) AND finished_at IS NULL ORDER BY id FOR SHARE"
        ") AS open",
        [list(job_ids)],
    )
