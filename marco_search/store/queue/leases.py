"""Who may write to a job: claims, heartbeats, and the ways a job ends or goes back to the queue.

A claim takes a lease with a generation that only ever grows. Every later write names its
generation; once the job has been reclaimed (`recovery`) it finds no row and raises LeaseLost,
in the same transaction, so that nothing of it is stored.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg.rows import class_row
from psycopg.sql import SQL
from psycopg.types.json import Jsonb

from marco_search.errors import LeaseLost
from marco_search.jobs import JobResult
from marco_search.runtime.base import RuntimeInfo
from marco_search.store.db import Conn, insertion
from marco_search.store.queue import jobs, scheduling
from marco_search.store.queue.states import CHANNEL, JOB_FINISHED, JobState, outbox
from marco_search.store.seal import seals


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """The claiming process, identified by `name`."""

    name: str
    host: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to write to a job, for `seconds` after the last heartbeat."""

    job_id: UUID
    generation: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A job as claimed."""

    job_id: UUID
    generation: int
    kind: str
    payload: dict[str, Any]
    expected: str | None
    plan: dict[str, Any] | None  #: see `SearchPlan.to_json`; None: never started
    attempts: int  #: this one included
    failures: int  #: attempts that ended with an error
    seconds: float  #: searched so far
    rounds: int  #: stored so far
    waited_s: float  #: since it was due
    traceparent: str | None  #: of its caller (see `tracing`)
    cancel_requested: bool
    expired: bool  #: its deadline has passed
    lease_s: float

    @property
    def lease(self) -> Lease:
        """The lease that the claim took."""
        return Lease(job_id=self.job_id, generation=self.generation, seconds=self.lease_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSignals:
    """Why the search of a job should stop; `paused`: the job, its tenant or all tenants."""

    cancelled: bool = False
    expired: bool = False
    paused: bool = False


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
        attempts, failures, seconds, rounds,
        extract(epoch FROM now() - run_after)::float8 AS waited_s,
        (SELECT detail ->> 'traceparent' FROM audit_log
            WHERE job_id = claimed.id AND event = 'submitted' LIMIT 1) AS traceparent,
        cancel_requested_at IS NOT NULL AS cancel_requested,
        coalesce(expires_at <= now(), false) AS expired, %(lease_s)s::float8 AS lease_s
    FROM claimed
""")
_NEXT = SQL(scheduling.FIRST)
_ENDING = SQL("""id = coalesce(
    (SELECT id FROM jobs WHERE finished_at IS NULL AND expires_at <= now() AND state = 'queued'
        AND rounds > 0 AND id <> ALL (%(apart)s) LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED),
    (SELECT id FROM jobs WHERE cancel_requested_at IS NOT NULL AND state = 'queued'
        AND rounds > 0 AND id <> ALL (%(apart)s) LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED)
)""")
_TRIES = 2  # a row that another transaction holds briefly is skipped


def claim_next(
    conn: Conn, worker: Worker, *, lease_s: float, begun_on: str = scheduling.NOT_BEGUN
) -> Claim | None:
    """Claim the next job (see `scheduling`) for a worker with this model.

    None if none is due.
    """
    queues = list({scheduling.NOT_BEGUN, begun_on})
    for _ in range(_TRIES):
        found = _claim(conn, _NEXT, worker, lease_s, {"begun_on": queues})
        if found is not None:
            return found
    return None


def claim_ending(
    conn: Conn, worker: Worker, *, lease_s: float, apart: Collection[UUID] = ()
) -> Claim | None:
    """Claim a queued job with rounds that only needs to be ended: it was cancelled or has expired.

    None if there is none besides those in `apart`.
    """
    return _claim(conn, _ENDING, worker, lease_s, {"apart": list(apart)})


def _claim(
    conn: Conn, which: SQL, worker: Worker, lease_s: float, given: dict[str, Any]
) -> Claim | None:
    detail = Jsonb({"worker": worker.name, "host": worker.host, "pid": worker.pid})
    given |= {"worker": worker.name, "lease_s": lease_s, "detail": detail}
    with conn.cursor(row_factory=class_row(Claim)) as cursor:
        return cursor.execute(_CLAIM.format(which=which), given).fetchone()


_FIX_PLAN = b"""
    WITH planned AS (
        UPDATE jobs SET plan = %(plan)s, begun_on = %(begun_on)s
        WHERE id = %(job_id)s AND plan IS NULL
    )
"""


def begin(
    conn: Conn,
    lease: Lease,
    worker: Worker,
    info: RuntimeInfo | None,
    plan: dict[str, Any] | None,
) -> None:
    """Write the attempt, and fix the job's plan if it has none. In the claim's transaction.

    `info` and `plan` are None if the runtime could not be used.
    """
    attempt = {"job_id": lease.job_id, "generation": lease.generation, "worker": worker.name}
    attempt |= {"host": worker.host, "pid": worker.pid}
    if info is not None:
        attempt |= {"runtime": info.name, "runtime_version": info.version}
        attempt |= {"model": info.model, "revision": info.revision}
        attempt["training"] = info.training and Jsonb(info.training.model_dump())
    if plan is not None:
        config = plan["config"]
        attempt |= {"config": Jsonb(config), "prompt": plan["prompt"], "seed": config["seed"]}
    query = insertion("attempts", *attempt)
    if plan is not None:
        query = _FIX_PLAN + query
        attempt |= {"plan": Jsonb(plan)}
        attempt["begun_on"] = scheduling.key(plan["model"], plan["revision"])
    conn.execute(query, attempt)


_HELD = "id = %(id)s AND lease_generation = %(generation)s AND state = 'running'"
_SIGNALS = """cancel_requested_at IS NOT NULL AS cancelled,
    coalesce(expires_at <= now(), false) AS expired,
    (paused_at IS NOT NULL OR EXISTS (
        SELECT FROM tenants AS t WHERE t.name IN ('', jobs.tenant) AND t.paused_at IS NOT NULL
    )) AS paused"""
_EXTEND = "UPDATE jobs SET lease_expires_at = now() + make_interval(secs => %(seconds)s)"


def heartbeat(conn: Conn, lease: Lease) -> JobSignals:
    """Extend the lease, and read the job's signals. Raises LeaseLost."""
    return _signals(conn, lease, f"{_EXTEND} WHERE {_HELD} RETURNING {_SIGNALS}")


def poll(conn: Conn, lease: Lease) -> JobSignals:
    """Read the job's signals; nothing is written. Raises LeaseLost."""
    return _signals(conn, lease, f"SELECT {_SIGNALS} FROM jobs WHERE {_HELD}")  # noqa: S608


def _signals(conn: Conn, lease: Lease, query: str) -> JobSignals:
    with conn.cursor(row_factory=class_row(JobSignals)) as cursor:
        found = cursor.execute(query.encode(), _key(lease) | {"seconds": lease.seconds}).fetchone()
    if found is None:
        raise lost(lease)
    return found


def release(
    conn: Conn,
    lease: Lease,
    *,
    why: str,
    seconds: float,
    published: bool,
    aging_s: float | None = None,
    delay_s: float = 0.0,
) -> None:
    """Return the job to the queue, due in `delay_s`; no failure is counted. Raises LeaseLost.

    `seconds` is the time searched so far. `published` says that the caller publishes it. The
    job keeps its place in the order; with `aging_s` it is placed as if submitted now.
    """
    changes = """state = 'queued', run_after = now() + make_interval(secs => %(delay_s)s),
        published_at = CASE WHEN %(published)s THEN now() END,
        turn_at = coalesce(
            now() + make_interval(secs => priority / 3.0 * %(aging_s)s::float8), turn_at)"""
    given = {"seconds": seconds, "published": published, "aging_s": aging_s, "delay_s": delay_s}
    _let_go(conn, lease, "released", {"why": why}, changes, given)


def retry(
    conn: Conn, lease: Lease, *, delay_s: float, error: dict[str, Any], seconds: float = 0.0
) -> None:
    """Return the job to the queue after an error, due in `delay_s`. Raises LeaseLost."""
    changes = """state = 'queued', run_after = now() + make_interval(secs => %(delay_s)s),
        published_at = NULL, failures = failures + 1, last_error = %(error)s"""
    given = {"seconds": seconds, "delay_s": delay_s, "error": Jsonb(error)}
    _let_go(conn, lease, "retried", error | {"delay_s": delay_s}, changes, given)


def end(
    conn: Conn,
    lease: Lease,
    state: JobState,
    *,
    result: JobResult | None = None,
    error: dict[str, Any] | None = None,
    seconds: float = 0.0,
) -> None:
    """Put the job into a final state, seal it, and notify producers and webhooks. Raises LeaseLost.

    The trail's totals and the answers are stored already; `result` gives the best answer,
    `error` (type, message, traceback) what went wrong, after searching for `seconds`. Must come
    last in its transaction.
    """
    best = result and result.answer
    changes = """state = %(state)s, finished_at = now(), answer = %(answer)s,
        confidence = %(confidence)s, correct = %(correct)s, stop_reason = %(stop_reason)s,
        last_error = coalesce(%(error)s, last_error)"""
    given = {
        "state": state,
        "answer": best and best.text,
        "confidence": best and best.confidence,
        "correct": result and result.correct,
        "stop_reason": result and result.stop_reason,
        "seconds": result.seconds if result else seconds,
        "error": None if error is None else Jsonb(error),
    }
    _let_go(conn, lease, state, error or {}, changes, given)
    seals.seal(conn, [lease.job_id])


def _let_go(
    conn: Conn,
    lease: Lease,
    event: str,
    detail: dict[str, Any],
    changes: str,
    given: dict[str, Any],
) -> None:
    """Release the lease with these changes to the job, and log the event. Raises LeaseLost."""
    row = conn.execute(
        f"""
        WITH changed AS (
            UPDATE jobs SET lease_owner = NULL, lease_expires_at = NULL,
                seconds = greatest(seconds, %(seconds)s), {changes}
            WHERE {_HELD} RETURNING id, tenant, finished_at IS NOT NULL AS ended,
                cancel_requested_at
        ), logged AS (
            INSERT INTO audit_log (job_id, generation, event, detail)
            SELECT id, %(generation)s, %(event)s, %(detail)s FROM changed
        ), {outbox(JOB_FINISHED, "SELECT id, tenant FROM changed WHERE ended")}
        SELECT cancel_requested_at IS NOT NULL AND NOT ended,
            CASE WHEN ended THEN pg_notify(%(channel)s, id::text) END
        FROM changed
        """.encode(),  # noqa: S608  # constants
        given | _key(lease) | {"event": event, "detail": Jsonb(detail), "channel": CHANNEL},
    ).fetchone()
    if row is None:
        raise lost(lease)
    if row[0]:  # while it was running: no worker should claim it again
        jobs.cancel(conn, [lease.job_id])


def ended(conn: Conn, lease: Lease) -> JobState | None:
    """The final state of the job, if it ended in this generation; None if it is running.

    Locks the row. Raises LeaseLost.
    """
    row = conn.execute(
        "SELECT state FROM jobs WHERE id = %(id)s AND lease_generation = %(generation)s"
        " AND state <> 'queued' FOR NO KEY UPDATE",
        _key(lease),
    ).fetchone()
    if row is None:
        raise lost(lease)
    return None if row[0] == JobState.RUNNING else JobState(row[0])


def lost(lease: Lease) -> LeaseLost:
    """The error for a lease that another generation has taken."""
    return LeaseLost(f"job {lease.job_id}: generation {lease.generation} lost its lease")


def _key(lease: Lease) -> dict[str, Any]:
    return {"id": lease.job_id, "generation": lease.generation}
