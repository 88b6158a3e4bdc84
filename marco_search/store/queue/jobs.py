"""Submitting, cancelling and pausing jobs."""

import json
import secrets
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from marco_search import tracing
from marco_search.errors import IdempotencyConflict, InvalidJob
from marco_search.jobs import Job, payload_hash
from marco_search.store.db import Conn
from marco_search.store.queue.states import (
    CHANNEL,
    JOB_FINISHED,
    PRIORITIES,
    JobState,
    not_found,
    outbox,
)
from marco_search.store.queue.tenants import Gate
from marco_search.store.seal import seals

AGING_S = 600.0
"""Default for the seconds of waiting that are worth one level of priority."""

_ROWS_A_STATEMENT = 1000
"""A submitted text may have 64 Ki characters; this limits the size of one statement."""


OF_BATCH = "ANY (ARRAY(SELECT job_id FROM audit.batch_lines WHERE batch_id = %(batch)s))"
"""Equals the id of any job of this batch. (An array, so that the primary key is used.)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobHandle:
    """A stored job: its `id`, its `state` when it was submitted, and its `batch_id`, if any.

    `created` is False if its idempotency key named an existing job, which this is then.
    """

    id: UUID
    state: JobState
    created: bool
    batch_id: UUID | None = None

    def __str__(self) -> str:
        return str(self.id)


def insert(
    conn: Conn,
    jobs: Sequence[Job],
    *,
    tenant: str,
    batch_id: UUID | None = None,
    lines: Sequence[int] | None = None,
    gate: Gate | None = None,
    aging_s: float = AGING_S,
) -> list[JobHandle]:
    """Store the jobs, in order, marked as published. `tenant` is for those without one.

    `lines` are their lines in the batch; by default 1, 2, ...

    A job is placed `aging_s` later for each level of priority below high (see `scheduling`).
    Raises IdempotencyConflict if a key belongs to another payload, InvalidJob if the deadline of
    a new job has passed, and QueueFull or QuotaExceeded if more than `gate` allows would be
    queued; the transaction must then be rolled back, so that none is stored. Existing jobs that
    a key names are never refused.
    """
    ids = [new_job_id() for _ in jobs]
    places = lines if lines is not None else range(1, len(jobs) + 1)
    context = tracing.current()
    about = {"detail": {"traceparent": context}} if context else {}
    found: dict[int, JobHandle] = {}
    # In the order of their keys: otherwise two that submit the same may deadlock.
    order = sorted(range(len(jobs)), key=lambda i: in_order(jobs[i], tenant))
    for start in range(0, len(jobs), _ROWS_A_STATEMENT):
        some = order[start : start + _ROWS_A_STATEMENT]
        rows = [
            _row(ids[i], jobs[i], tenant, batch_id, places[i]) | {"index": i} | about for i in some
        ]
        found |= zip(some, insert_rows(conn, rows, aging_s), strict=True)
    stored = [found[i] for i in range(len(jobs))]
    _check_deadlines(jobs, stored)
    if gate is not None:
        pairs = zip(jobs, stored, strict=True)
        gate.check(conn, Counter(job.tenant or tenant for job, done in pairs if done.created))
    return stored


def in_order(job: Job, tenant: str) -> tuple[str, str]:
    """What jobs are sorted by when several are stored in one transaction."""
    return job.tenant or tenant, job.idempotency_key or ""


def _check_deadlines(jobs: Sequence[Job], stored: Sequence[JobHandle]) -> None:
    now = datetime.now(UTC)
    for index, (job, handle) in enumerate(zip(jobs, stored, strict=True)):
        if handle.created and job.deadline is not None and job.deadline <= now:
            raise InvalidJob(
                "deadline", f"{job.deadline:%F %T%z} has passed; give a later one", index
            )


def _row(job_id: UUID, job: Job, tenant: str, batch_id: UUID | None, line: int) -> dict[str, Any]:
    apart = {"tenant", "idempotency_key", "expected", "custom_id"}
    deadline = job.deadline
    return {
        "id": str(job_id),
        "tenant": job.tenant or tenant,
        "kind": job.kind,
        "priority": PRIORITIES[job.priority],
        "payload": job.model_dump(mode="json", exclude=apart),
        "expected": job.expected,
        "payload_hash": payload_hash(job),
        "idempotency_key": job.idempotency_key,
        "batch_id": None if batch_id is None else str(batch_id),
        "batch_line": None if batch_id is None else line,
        "custom_id": job.custom_id,
        "deadline": None if deadline is None else deadline.isoformat(),
        "expires_in_s": job.expires_in_s,
    }


def insert_rows(conn: Conn, rows: list[dict[str, Any]], aging_s: float) -> list[JobHandle]:
    """Store jobs as `insert` does. `detail` of a row is that of its event."""
    created = conn.execute(
        """
        WITH given AS (
            SELECT * FROM jsonb_to_recordset(%(rows)s::jsonb) AS r (id uuid, tenant text, kind text,
                priority smallint, payload jsonb, expected text, payload_hash text,
                idempotency_key text, batch_id uuid, batch_line int, custom_id text,
                deadline timestamptz, expires_in_s float8, detail jsonb)
        ), created AS (
            INSERT INTO jobs (id, tenant, kind, priority, payload, expected, payload_hash,
                idempotency_key, batch_id, batch_line, custom_id, turn_at, expires_at, published_at)
            SELECT id, tenant, kind, priority, payload, expected, payload_hash,
                idempotency_key, batch_id, batch_line, custom_id,
                now() + make_interval(secs => priority / 3.0 * %(aging_s)s),
                coalesce(deadline, now() + make_interval(secs => expires_in_s)), now()
            FROM given
            ON CONFLICT (tenant, idempotency_key) DO NOTHING
            RETURNING id
        ), logged AS (
            INSERT INTO audit_log (job_id, event, detail)
            SELECT id, 'submitted', coalesce(detail, '{}') FROM given JOIN created USING (id)
        )
        SELECT id::text FROM created
        """,
        {"rows": json.dumps(rows), "aging_s": aging_s},
    ).fetchall()
    stored = {i: JobHandle(id=UUID(i), state=JobState.QUEUED, created=True) for (i,) in created}
    others = [row for row in rows if row["id"] not in stored]
    known = _known(conn, others)
    stored |= {row["id"]: known[_key(row)] for row in others if _key(row) in known}
    # Jobs that these keys named were redacted a moment ago, and the keys with them.
    if freed := [row for row in others if _key(row) not in known]:
        again = insert_rows(conn, freed, aging_s)
        stored |= {row["id"]: handle for row, handle in zip(freed, again, strict=True)}
    return [stored[row["id"]] for row in rows]


def _key(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["tenant"], row["idempotency_key"]


def copy(conn: Conn, which: str, given: Mapping[str, object], aging_s: float) -> dict[UUID, UUID]:
    """Restart the jobs that match the condition `which`; old id to new id.

    A new job has the old one's request, tenant, priority, batch and expected answer; a deadline
    that has passed is dropped, and the idempotency key stays with the old job.
    """
    stored = conn.execute(
        f"""
        SELECT id, jsonb_build_object('tenant', tenant, 'kind', kind, 'priority', priority,
            'payload', payload, 'expected', expected, 'payload_hash', payload_hash,
            'batch_id', batch_id, 'batch_line', batch_line, 'custom_id', custom_id,
            'deadline', CASE WHEN expires_at > now() THEN expires_at END,
            'detail', jsonb_build_object('restart_of', id))
        FROM jobs WHERE {which}
        """.encode(),  # noqa: S608  # constants
        given,
    ).fetchall()
    # Above the old ids, whatever the clock here says: of a line the job with the highest counts.
    copies = {old: max(new_job_id(), UUID(int=old.int + 1)) for old, _ in stored}
    insert_rows(conn, [row | {"id": str(copies[old])} for old, row in stored], aging_s)
    return copies


def _known(conn: Conn, rows: list[dict[str, Any]]) -> dict[tuple[str, str], JobHandle]:
    """The existing jobs of these rows' idempotency keys."""
    if not rows:
        return {}
    found = conn.execute(
        """
        SELECT tenant, idempotency_key, payload_hash, id, state
        FROM jobs JOIN unnest(%s::text[], %s::text[]) AS k (tenant, idempotency_key)
            USING (tenant, idempotency_key)
        """,
        [[row["tenant"] for row in rows], [row["idempotency_key"] for row in rows]],
    ).fetchall()
    known = {(tenant, key): rest for tenant, key, *rest in found}
    for row in rows:
        payload, job_id, _ = known.get(_key(row), (row["payload_hash"], None, None))
        if payload != row["payload_hash"]:
            raise IdempotencyConflict(
                f"idempotency_key: {row['idempotency_key']!r} belongs to job {job_id}, which has "
                "another payload; send the same payload or use another key",
                row.get("index"),
            )
    return {
        key: JobHandle(id=job_id, state=JobState(state), created=False)
        for key, (_, job_id, state) in known.items()
    }


def cancel(
    conn: Conn,
    job_ids: Iterable[UUID],
    *,
    tenant: str | None = None,
    detail: Mapping[UUID, dict[str, Any]] | None = None,
) -> dict[UUID, JobState]:
    """Cancel jobs: queued ones at once, running ones within two seconds. Seals them together.

    A queued one that has rounds is left to the scheduler, which ranks its answers. Returns the
    state of each afterwards; a job in a final state does not change. `tenant` restricts which
    jobs are visible; `detail` goes into their events. Raises JobNotFound.
    """
    wanted = list(dict.fromkeys(job_ids))
    details = {str(job_id): about for job_id, about in (detail or {}).items()}
    ended = conn.execute(
        f"""
        WITH wanted AS (
            SELECT id, state = 'queued' AND rounds = 0 AS ends, cancel_requested_at IS NULL AS asks
            FROM jobs WHERE id = ANY (%(ids)s) AND state IN ('queued', 'running')
                AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s)
            ORDER BY id FOR NO KEY UPDATE
        ), changed AS (
            UPDATE jobs SET state = CASE WHEN ends THEN 'cancelled' ELSE state END,
                finished_at = CASE WHEN ends THEN now() END, parked_at = NULL,
                cancel_requested_at = coalesce(cancel_requested_at, now())
            FROM wanted WHERE jobs.id = wanted.id
            RETURNING jobs.id, tenant, ends, asks
        ), logged AS (
            INSERT INTO audit_log (job_id, event, detail)
            SELECT id, CASE WHEN ends THEN 'cancelled' ELSE 'cancel_requested' END,
                coalesce(%(details)s::jsonb -> id::text, '{{}}')
            FROM changed WHERE ends OR asks
        ), {outbox(JOB_FINISHED, "SELECT id, tenant FROM changed WHERE ends")}
        SELECT id, pg_notify(%(channel)s, id::text) FROM changed WHERE ends ORDER BY id
        """.encode(),  # noqa: S608  # constants
        {"ids": wanted, "tenant": tenant, "details": json.dumps(details), "channel": CHANNEL},
    ).fetchall()
    found = states(conn, wanted, tenant=tenant)
    seals.seal(conn, [row[0] for row in ended])
    return found


def set_paused(conn: Conn, job_id: UUID, *, paused: bool, tenant: str | None = None) -> JobState:
    """Pause or resume a job; returns its state. One that has ended does not change.

    `tenant` restricts which jobs are visible. The caller publishes a resumed job. Raises
    JobNotFound.
    """
    conn.execute(
        """
        WITH changed AS (
            UPDATE jobs SET paused_at = CASE WHEN %(paused)s THEN now() END,
                published_at = CASE WHEN run_after <= now() THEN now() END
            WHERE id = %(id)s AND finished_at IS NULL AND (paused_at IS NULL) = %(paused)s
                AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s)
            RETURNING id
        )
        INSERT INTO audit_log (job_id, event)
        SELECT id, CASE WHEN %(paused)s THEN 'paused' ELSE 'resumed' END FROM changed
        """,
        {"id": job_id, "tenant": tenant, "paused": paused},
    )
    return states(conn, [job_id], tenant=tenant)[job_id]


def unfinished(
    conn: Conn,
    *,
    tenant: str | None = None,
    batch_id: UUID | None = None,
    state: JobState | None = None,
    limit: int,
) -> list[UUID]:
    """Jobs that have not ended and were not cancelled, the oldest first; only those of a tenant,
    a batch, or in `state`, if given.
    """
    rows = conn.execute(
        f"""
        SELECT id FROM jobs WHERE state IN ('queued', 'running') AND cancel_requested_at IS NULL
            AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s)
            AND (%(batch)s::uuid IS NULL OR id = {OF_BATCH})
            AND (%(state)s::text IS NULL OR state = %(state)s)
        ORDER BY id LIMIT %(limit)s
        """.encode(),  # noqa: S608  # constants
        {"tenant": tenant, "batch": batch_id, "state": state, "limit": limit},
    )
    return [row[0] for row in rows]


def states(
    conn: Conn, job_ids: Iterable[UUID], *, tenant: str | None = None
) -> dict[UUID, JobState]:
    """The state of each job. Raises JobNotFound for the first that does not exist."""
    wanted = list(job_ids)
    rows = conn.execute(
        "SELECT id, state FROM jobs WHERE id = ANY (%(ids)s)"
        " AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s)",
        {"ids": wanted, "tenant": tenant},
    )
    found = {job_id: JobState(state) for job_id, state in rows}
    for job_id in wanted:
        if job_id not in found:
            raise not_found(job_id, tenant)
    return found


def new_job_id() -> UUID:
    """A UUID of version 7 (RFC 9562, with 12 bits of a millisecond's fraction).

    Random, and sorted by time: indexes stay dense, and the jobs of a batch keep their order.
    """
    milliseconds, rest_ns = divmod(time.time_ns(), 1_000_000)
    fraction = rest_ns * 4096 // 1_000_000
    random = secrets.randbits(62)
    return UUID(int=milliseconds << 80 | 7 << 76 | fraction << 64 | 2 << 62 | random)
