"""The trail of a search: rounds in, their nodes by COPY, and all of them out again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar
from uuid import UUID

from psycopg.rows import kwargs_row
from psycopg.types.json import Json, Jsonb

from marco_search import schema as tables
from marco_search.errors import SearchError
from marco_search.jobs import Answer
from marco_search.search.tree import Node, Rollout, Round
from marco_search.store.db import Conn, insert, is_pooled
from marco_search.store.queue.leases import Lease, lost
from marco_search.store.trail import packing

R = TypeVar("R", Node, Rollout)
_SUMS = ("generated_tokens", "prompt_tokens", "cached_tokens")
_NODE_NAMES = ", ".join(packing.NODE_COLUMNS)
_NAMES = ", ".join(packing.ROLLOUT_COLUMNS)
_TYPED = ", ".join(f"{name} {kind}" for name, kind in packing.ROLLOUT_COLUMNS.items())
# Locks the job's row: until this transaction ends, nobody else can claim it.
_ROUND = f"""
    WITH changed AS (
        UPDATE jobs SET rounds = %(round)s, seconds = %(seconds)s, nodes = nodes + %(nodes)s,
            rollouts = rollouts + %(rollouts)s,
            generated_tokens = generated_tokens + %(generated_tokens)s,
            prompt_tokens = prompt_tokens + %(prompt_tokens)s,
            cached_tokens = cached_tokens + %(cached_tokens)s,
            lease_expires_at = now() + make_interval(secs => %(lease_s)s)
        WHERE id = %(job_id)s AND lease_generation = %(generation)s AND state = 'running'
            AND rounds = %(round)s - 1
        RETURNING cancel_requested_at
    ), logged AS (
        INSERT INTO audit_log (job_id, generation, event, detail)
        SELECT %(job_id)s, %(generation)s, 'round', %(detail)s FROM changed
    ), written AS (
        INSERT INTO rollouts ({_NAMES})
        SELECT {_NAMES} FROM json_to_recordset(%(written)s) AS rollout ({_TYPED}), changed
    )
    SELECT cancel_requested_at IS NOT NULL, row_security_active('nodes') FROM changed
""".encode()  # noqa: S608  # constants


def append(conn: Conn, lease: Lease, kept: Round, *, seconds: float) -> bool:
    """Write one round; True if the job was asked to stop. A round that is there is left.

    `seconds` is the time searched so far. The lease is extended. Raises LeaseLost.
    """
    totals = {"nodes": len(kept.nodes), "rollouts": len(kept.rollouts)}
    totals |= {name: sum(getattr(r, name) for r in kept.rollouts) for name in _SUMS}
    attempt: dict[str, Any] = {"job_id": lease.job_id, "generation": lease.generation}
    known = {"job_id": str(lease.job_id), "generation": lease.generation}
    names = [name for name in packing.ROLLOUT_COLUMNS if name not in known]
    rollouts = [known | {name: getattr(r, name) for name in names} for r in kept.rollouts]
    given = attempt | totals | {"round": kept.number, "seconds": seconds}
    given |= {"lease_s": lease.seconds, "detail": Jsonb({"round": kept.number} | totals)}
    row = conn.execute(_ROUND, given | {"written": Json(rollouts)}).fetchone()
    if row is None:
        return _kept_already(conn, lease, kept.number)
    copy_nodes(conn, lease, kept.nodes, staged=bool(row[1]))
    return bool(row[0])


def copy_nodes(conn: Conn, lease: Lease, nodes: Sequence[Node], *, staged: bool = False) -> None:
    """The part of `append` that grows with the tree.

    `staged` goes by way of a temporary table: where row-level security applies to the user,
    Postgres refuses COPY into the table itself.
    """
    into = "pg_temp.staged_nodes" if staged else "nodes"
    if staged:
        # A session that is another program's next keeps nothing of ours.
        end = "DROP" if is_pooled(conn) else "DELETE ROWS"
        conn.execute(
            f"CREATE TEMP TABLE IF NOT EXISTS {into} ON COMMIT {end}"  # noqa: S608  # constants
            f" AS SELECT {_NODE_NAMES} FROM nodes WITH NO DATA".encode()
        )
    query = f"COPY {into} ({_NODE_NAMES}) FROM STDIN (FORMAT binary)".encode()
    with conn.cursor() as cursor, cursor.copy(query) as copy:
        for part in packing.copy_nodes(lease.job_id, lease.generation, nodes):
            copy.write(part)
    if staged:
        # The commit empties the stage: a second round in this transaction would find the first
        # one there, and break the primary key.
        move = f"INSERT INTO nodes ({_NODE_NAMES}) SELECT {_NODE_NAMES} FROM {into}"  # noqa: S608
        conn.execute(move.encode())


def _kept_already(conn: Conn, lease: Lease, number: int) -> bool:
    """A commit whose answer was lost is tried again: then the round is there, and ours."""
    row = conn.execute(
        "SELECT rounds, cancel_requested_at IS NOT NULL FROM jobs"
        " WHERE id = %s AND lease_generation = %s AND state = 'running'",
        [lease.job_id, lease.generation],
    ).fetchone()
    if row is None:
        raise lost(lease)
    if row[0] != number:
        raise SearchError(f"round {number} follows round {row[0]}: nothing of it was kept")
    return bool(row[1])


def write_answers(conn: Conn, lease: Lease, answers: Sequence[Answer]) -> None:
    """Write a job's answers."""
    columns = packing.written(tables.ANSWERS)
    attempt = {"job_id": lease.job_id, "generation": lease.generation}
    rows = []
    for answer in answers:
        known = attempt | {"key": answer.normalised, "rollout_ids": list(answer.rollout_ids)}
        rows.append({k: known[k] if k in known else getattr(answer, k) for k in columns})
    insert(conn, "answers", rows)


def load(conn: Conn, job_id: UUID, *, schema: str = "public") -> tuple[list[Node], list[Rollout]]:
    """All nodes below the root and all rollouts of a job, in id order.

    From the tables; from the views of the same names with the schema of those.
    """
    nodes = _read(conn, job_id, f"{schema}.nodes", packing.NODE_COLUMNS, packing.node)
    return nodes, rollouts(conn, job_id, schema=schema)


def rollouts(conn: Conn, job_id: UUID, *, schema: str) -> list[Rollout]:
    """All rollouts of a job, in id order; see `load`."""
    return _read(conn, job_id, f"{schema}.rollouts", packing.ROLLOUT_COLUMNS, packing.rollout)


def _read(
    conn: Conn, job_id: UUID, table: str, columns: Iterable[str], make: Callable[..., R]
) -> list[R]:
    names = [name for name in columns if name not in ("job_id", "generation")]
    query = f"SELECT {', '.join(names)} FROM {table} WHERE job_id = %s ORDER BY {names[0]}"  # noqa: S608
    # Binary: as text a real is cut to the shortest decimal, not the float it holds.
    with conn.cursor(binary=True, row_factory=kwargs_row(make)) as cursor:
        return cursor.execute(query.encode(), [job_id]).fetchall()
