"""Taking a job: a claim gives its worker a lease with a new generation (see `leases`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg.rows import class_row
from psycopg.sql import SQL
from psycopg.types.json import Jsonb

from marco_search.runtime.base import RuntimeInfo
from marco_search.store.db import Conn
from marco_search.store.queue import line
from marco_search.store.queue.leases import PAUSED, Lease, Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A job as claimed."""

    job_id: UUID
    generation: int
    kind: str
    payload: dict[str, Any]
    expected: str | None
    plan: dict[str, Any] | None  # None: never begun
    attempts: int  # this one included
    failures: int  # attempts so far that an error ended
    seconds: float  # searched so far
    rounds: int  # kept so far
    cancel_requested: bool
    expired: bool  # its deadline has passed


_CLAIM = SQL("""
    WITH claimed AS (
        UPDATE jobs SET state = 'running', attempts = attempts + 1,
            lease_generation = lease_generation + 1, lease_owner = %(worker)s,
            lease_expires_at = now() + make_interval(secs => %(lease_s)s),
            started_at = coalesce(started_at, now()), parked_at = NULL
        WHERE {which} RETURNING *
    ), logged AS (
        INSERT INTO audit_log (job_id, generation, event, detail)
        SELECT id, lease_generation, 'claimed', %(detail)s FROM claimed
    )
    SELECT id AS job_id, lease_generation AS generation, kind, payload, expected, plan,
        attempts, failures, seconds, rounds, cancel_requested_at IS NOT NULL AS cancel_requested,
        coalesce(expires_at <= now(), false) AS expired
    FROM claimed
""")
_THIS = SQL(
    "id = %(id)s AND state = 'queued' AND ("
    f"run_after <= now() AND NOT {PAUSED}"
    " AND (begun_on = '' OR begun_on = coalesce(%(begun_on)s, begun_on))"
    " OR expires_at <= now() OR cancel_requested_at IS NOT NULL)"
)
_NEXT = SQL(line.FIRST)
_TRIES = 5  # while others claim the same rows at the same moment


def claim(
    conn: Conn, job_id: UUID, worker: Worker, *, lease_s: float, begun_on: str | None = None
) -> Claim | None:
    """Take this job if it is due, or is only to be ended: it has expired or was cancelled.

    `begun_on` is the worker's model (`line.key`); None: any. None if there is nothing to do: it
    is running, has ended, is paused, was begun on another model, waits for its back-off, or does
    not exist.
    """
    return _claim(conn, _THIS, {"id": job_id, "begun_on": begun_on}, worker, lease_s)


def claim_next(
    conn: Conn, worker: Worker, *, lease_s: float, begun_on: str = line.NOT_BEGUN
) -> Claim | None:
    """Take the job whose turn it is (see `line`). None if none is due for this model."""
    for _ in range(_TRIES):
        turns = line.turns(conn, begun_on)
        for tenant, its_line in turns:
            names = {"tenant": tenant, "begun_on": its_line}
            found = _claim(conn, _NEXT, names, worker, lease_s)
            if found is not None:
                return found
        if not turns:
            break
    return None


def _claim(
    conn: Conn, which: SQL, names: dict[str, Any], worker: Worker, lease_s: float
) -> Claim | None:
    about = {"worker": worker.name, "host": worker.host, "pid": worker.pid}
    with conn.cursor(row_factory=class_row(Claim)) as cursor:
        return cursor.execute(
            _CLAIM.format(which=which),
            names | {"worker": worker.name, "lease_s": lease_s, "detail": Jsonb(about)},
        ).fetchone()


def begin(
    conn: Conn,
    lease: Lease,
    worker: Worker,
    info: RuntimeInfo | None,
    plan: dict[str, Any] | None,
) -> None:
    """Write the attempt, and fix the job's plan if it has none. In the claim's transaction.

    `info` and `plan` (`driver.Plan.to_json`) are None if the runtime could not be used.
    """
    conn.execute(
        """
        INSERT INTO attempts (job_id, generation, worker, host, pid, runtime, runtime_version,
            model, revision, config, prompt, seed)
        VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
        """,
        [
            lease.job_id, lease.generation, worker.name, worker.host, worker.pid,
            info and info.name, info and info.version, info and info.model,
            info and info.revision, plan and Jsonb(plan["config"]), plan and plan["prompt"],
            plan and plan["config"]["seed"],
        ],
    )  # fmt: skip
    if plan is not None:
        conn.execute(
            "UPDATE jobs SET plan = %s, begun_on = %s WHERE id = %s AND plan IS NULL",
            [Jsonb(plan), line.key(plan["model"], plan["revision"]), lease.job_id],
        )
