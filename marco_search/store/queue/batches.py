"""Batches: what was submitted together, line by line, and the outcome of each line.

A batch is uploaded in parts, each in one transaction with the number and the hash of the lines
read, so that an interrupted upload continues where it stopped. A line's job is the latest with
its number: restarting one creates a new job for the same line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from marco_search.errors import BatchNotFound, InvalidJob
from marco_search.store.db import Conn, insert, select
from marco_search.store.queue import jobs
from marco_search.store.queue.jobs import AGING_S, OF_BATCH, JobHandle, new_job_id
from marco_search.store.queue.states import BATCH_FINISHED, outbox

AGAIN = ("cancelled", "expired", "failed", "dead")
"""States of jobs that `restart` restarts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A batch, and the states of its jobs.

    Fields:
    id, tenant, metadata, created_at: Which, whose, the caller's values, when its upload began
    source, file_id: Path or name of its input, None for a list of jobs; the uploaded file
    completed_at: When all its lines had been stored
    finished_at: When all its jobs were found to have ended
    expires_at: Deadline of its jobs without their own
    cancelled_at: When it was cancelled before it had ended
    lines, refused: Lines read so far, including empty and refused ones; refused ones
    digest: SHA-256, hex, of the search options and the lines read so far
    states: Number of jobs in each state; of each line the latest job counts
    """

    id: UUID
    tenant: str
    source: str | None
    file_id: UUID | None
    metadata: dict[str, Any]
    created_at: datetime
    completed_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None
    cancelled_at: datetime | None
    lines: int
    refused: int
    digest: str | None
    states: dict[str, int]

    @property
    def left(self) -> int:
        """Jobs that have not ended."""
        return self.states.get("queued", 0) + self.states.get("running", 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLine:
    """A non-empty line of a batch, from 1, and the caller's `custom_id` for it.

    It has a `job_id`, or was refused because of a `field` for a `reason`.
    """

    line: int
    job_id: UUID | None
    custom_id: str | None
    field: str | None
    reason: str | None


_BATCH = """(SELECT *, batch_id AS id FROM audit.batches) AS batch
    WHERE (%(tenant)s::text IS NULL OR tenant = %(tenant)s)"""
_LINES = "audit.batch_lines WHERE batch_id = %(id)s"


def find(conn: Conn, batch_id: UUID, *, tenant: str | None = None) -> Batch:
    """A batch. Raises BatchNotFound."""
    given = {"tenant": tenant, "batch": batch_id}
    found = select(conn, Batch, f"{_BATCH} AND id = %(batch)s", given)
    if not found:
        raise BatchNotFound(f"no batch {batch_id}; `marco batch status` lists the latest")
    return found[0]


def latest(
    conn: Conn, *, tenant: str | None = None, limit: int = 20, after: UUID | None = None
) -> list[Batch]:
    """The latest batches, newest first; with `after`, those that follow that one."""
    given = {"tenant": tenant, "limit": limit, "after": after}
    source = f"""{_BATCH} AND (%(after)s::uuid IS NULL OR (created_at, id) <
        (SELECT created_at, batch_id FROM audit.batches WHERE batch_id = %(after)s
            AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s)))
        ORDER BY created_at DESC, id DESC LIMIT %(limit)s"""  # noqa: S608  # constants
    return select(conn, Batch, source, given)


def begin(
    conn: Conn,
    *,
    tenant: str,
    source: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    batch_id: UUID | None = None,
    file_id: UUID | None = None,
    expires_in_s: float | None = None,
) -> Batch:
    """The batch to upload to: that of the id, an incomplete one of this source, or a new one.

    Raises InvalidJob for the id of another tenant's batch.
    """
    if batch_id is None and source is not None:
        found = conn.execute(
            "SELECT id FROM batches WHERE tenant = %s AND source = %s AND completed_at IS NULL"
            " AND cancelled_at IS NULL AND file_id IS NULL ORDER BY created_at DESC LIMIT 1",
            [tenant, source],
        ).fetchone()
        batch_id = found[0] if found else None
    batch_id = batch_id or new_job_id()
    conn.execute(
        "INSERT INTO batches (id, tenant, source, metadata, file_id, expires_at)"
        " VALUES (%s, %s, %s, %s, %s, now() + make_interval(secs => %s)) ON CONFLICT DO NOTHING",
        [batch_id, tenant, source, json.dumps(dict(metadata or {})), file_id, expires_in_s],
    )
    batch = find(conn, batch_id)
    if batch.tenant != tenant:
        raise InvalidJob("batch_id", f"{batch_id} is a batch of another tenant's")
    return batch


ENDED = """coalesce(completed_at, cancelled_at) IS NOT NULL AND finished_at IS NULL AND coalesce(
    (SELECT 1 FROM jobs WHERE batch_id = batches.id AND finished_at IS NULL LIMIT 1),
    (SELECT 1 FROM batch_lines AS l JOIN jobs AS j ON j.id = l.known_id
        WHERE l.batch_id = batches.id AND j.finished_at IS NULL LIMIT 1)
) IS NULL"""
"""Condition on a batch: it has ended, and is not yet marked."""


def mark_finished(conn: Conn, limit: int = 100) -> int:
    """Mark batches that have ended, and store deliveries to their webhooks; how many ended."""
    found = conn.execute(
        f"SELECT id FROM batches WHERE {ENDED} LIMIT %s FOR NO KEY UPDATE SKIP LOCKED".encode(),  # noqa: S608
        [limit],
    ).fetchall()
    # Again, now that they are locked: what restarts one has been committed, or waits for us.
    return conn.execute(
        f"""
        WITH ended AS (
            UPDATE batches SET finished_at = now() WHERE id = ANY (%s) AND {ENDED}
            RETURNING id, tenant
        ), {outbox(BATCH_FINISHED, "SELECT id, tenant FROM ended")}
        SELECT FROM ended
        """.encode(),  # noqa: S608  # constants
        [[row[0] for row in found]],
    ).rowcount


def take(
    conn: Conn,
    batch_id: UUID,
    *,
    before: int | None,
    lines: int,
    digest: str | None = None,
    complete: bool = False,
) -> int:
    """Count `lines` more lines as read; returns how many there were before.

    `before` is the expected number. Raises InvalidJob if another upload of the same batch
    was faster, or if it was cancelled.
    """
    row = conn.execute(
        """
        UPDATE batches SET lines = lines + %(lines)s, digest = coalesce(%(digest)s, digest),
            finished_at = NULL,
            completed_at = coalesce(completed_at, CASE WHEN %(complete)s THEN now() END)
        WHERE id = %(id)s AND (%(before)s::int IS NULL OR lines = %(before)s)
            AND cancelled_at IS NULL
        RETURNING lines - %(lines)s
        """,
        {"id": batch_id, "before": before, "lines": lines, "digest": digest, "complete": complete},
    ).fetchone()
    if row is None:
        raise InvalidJob(
            "batch_id", f"batch {batch_id} was cancelled, or is being uploaded by another process"
        )
    return int(row[0])


def refuse(conn: Conn, batch_id: UUID, lines: Iterable[BatchLine]) -> None:
    """Store refused lines."""
    columns = ("line", "custom_id", "field", "reason")
    rows = [{"batch_id": batch_id} | {c: getattr(one, c) for c in columns} for one in lines]
    if not rows:
        return
    insert(conn, "batch_lines", rows)
    conn.execute("UPDATE batches SET refused = refused + %s WHERE id = %s", [len(rows), batch_id])


def note_known(
    conn: Conn, batch_id: UUID, stored: Sequence[tuple[int, str | None, JobHandle]]
) -> None:
    """Store the lines (number, custom_id, job) whose idempotency key belongs to an existing job."""
    known = [
        {"batch_id": batch_id, "line": line, "custom_id": name, "known_id": job.id}
        for line, name, job in stored
        if not job.created
    ]
    insert(conn, "batch_lines", known)


def lines(conn: Conn, batch_id: UUID, *, after: int, last: int) -> list[BatchLine]:
    """The lines after one up to another, in order."""
    given = {"id": batch_id, "after": after, "last": last}
    source = f"{_LINES} AND line > %(after)s AND line <= %(last)s ORDER BY line"
    return select(conn, BatchLine, source, given)


def refused(
    conn: Conn, batch_id: UUID, *, after: int = 0, limit: int | None = None
) -> list[BatchLine]:
    """The lines after one that were refused, in order; `limit` at most, if given."""
    given = {"id": batch_id, "after": after, "limit": limit}
    source = f"{_LINES} AND reason IS NOT NULL AND line > %(after)s ORDER BY line LIMIT %(limit)s"
    return select(conn, BatchLine, source, given)


def mark_cancelled(conn: Conn, batch_id: UUID, *, tenant: str | None = None) -> None:
    """Mark an unfinished batch as cancelled: no more of its lines are read."""
    conn.execute(
        f"""
        UPDATE batches SET cancelled_at = now()
        WHERE id = %(batch)s AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s)
            AND cancelled_at IS NULL AND (completed_at IS NULL OR EXISTS
                (SELECT FROM jobs WHERE id = {OF_BATCH} AND finished_at IS NULL))
        """.encode(),  # noqa: S608  # constants
        {"batch": batch_id, "tenant": tenant},
    )


def restart(
    conn: Conn,
    batch_id: UUID,
    *,
    after: int,
    last: int,
    tenant: str | None = None,
    aging_s: float = AGING_S,
) -> list[UUID]:
    """Restart the jobs that ended without success, of the lines after one up to another.

    Returns the new ones; the caller publishes them (see `jobs.copy`). The old ones keep their
    trail. Jobs that were submitted elsewhere and are named by a key in the batch do not change.
    """
    # One restart at a time: two would create two jobs for one line.
    conn.execute(
        "UPDATE batches SET cancelled_at = NULL,"
        " finished_at = CASE WHEN completed_at IS NOT NULL THEN finished_at END WHERE id = %s",
        [batch_id],
    )
    which = """batch_id = %(batch)s AND batch_line > %(after)s AND batch_line <= %(last)s
        AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s) AND redacted_at IS NULL
        AND state = ANY (%(states)s) AND NOT EXISTS (
            SELECT FROM jobs AS later WHERE later.batch_id = jobs.batch_id
                AND later.batch_line = jobs.batch_line AND later.id > jobs.id
        ) ORDER BY batch_line"""
    given: dict[str, Any] = {"batch": batch_id, "tenant": tenant, "states": list(AGAIN)}
    given |= {"after": after, "last": last}
    made = jobs.copy(conn, which, given, aging_s)
    if made:
        conn.execute("UPDATE batches SET finished_at = NULL WHERE id = %s", [batch_id])
    return list(made.values())
