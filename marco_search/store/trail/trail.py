"""The trail of a search: rounds in by COPY, all of them out again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar
from uuid import UUID

from psycopg import Copy
from psycopg.rows import kwargs_row
from psycopg.sql import SQL, Identifier
from psycopg.types.json import Jsonb

from marco_search.errors import SearchError
from marco_search.jobs import Answer
from marco_search.search.tree import Node, Rollout, Round
from marco_search.store.db import Conn, is_pooled
from marco_search.store.queue.leases import Lease, lost
from marco_search.store.trail import packing, records

R = TypeVar("R", Node, Rollout)


def append(conn: Conn, lease: Lease, kept: Round, *, seconds: float) -> bool:
    """Write one round; True if the job was asked to stop. A round that is there is left.

    `seconds` is the time searched so far. The lease is extended. Raises LeaseLost.
    """
    rollouts = kept.rollouts
    totals = {
        "nodes": len(kept.nodes),
        "rollouts": len(rollouts),
        "generated_tokens": sum(r.generated_tokens for r in rollouts),
        "prompt_tokens": sum(r.prompt_tokens for r in rollouts),
        "cached_tokens": sum(r.cached_tokens for r in rollouts),
    }
    # Locks the row: until this transaction ends, nobody else can claim the job.
    row = conn.execute(
        """
        UPDATE jobs SET rounds = %(round)s, seconds = %(seconds)s, nodes = nodes + %(nodes)s,
            rollouts = rollouts + %(rollouts)s,
            generated_tokens = generated_tokens + %(generated_tokens)s,
            prompt_tokens = prompt_tokens + %(prompt_tokens)s,
            cached_tokens = cached_tokens + %(cached_tokens)s,
            lease_expires_at = now() + make_interval(secs => %(lease_s)s)
        WHERE id = %(id)s AND lease_generation = %(generation)s AND state = 'running'
            AND rounds = %(round)s - 1
        RETURNING cancel_requested_at IS NOT NULL, row_security_active('nodes')
        """,
        totals
        | {
            "round": kept.number,
            "seconds": seconds,
            "lease_s": lease.seconds,
            "id": lease.job_id,
            "generation": lease.generation,
        },
    ).fetchone()
    if row is None:
        return _kept_already(conn, lease, kept.number)
    staged = bool(row[1])
    copy_nodes(conn, lease, kept.nodes, staged=staged)
    columns = ("job_id", "generation", *records.ROLLOUT_COLUMNS)
    with _copy(conn, "rollouts", columns, staged=staged) as copy:
        copy.set_types(["uuid", "int8", *records.ROLLOUT_COLUMNS.values()])
        for rollout in rollouts:
            copy.write_row((lease.job_id, lease.generation, *records.rollout_row(rollout)))
    conn.execute(
        "INSERT INTO audit_log (job_id, generation, event, detail) VALUES (%s, %s, 'round', %s)",
        [lease.job_id, lease.generation, Jsonb({"round": kept.number} | totals)],
    )
    return bool(row[0])


def copy_nodes(conn: Conn, lease: Lease, nodes: Sequence[Node], *, staged: bool = False) -> None:
    """The part of `append` that grows with the tree. `staged`: see `_copy`."""
    with _copy(conn, "nodes", packing.COLUMNS, staged=staged) as copy:
        for part in packing.copy_nodes(lease.job_id, lease.generation, nodes):
            copy.write(part)


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


@contextlib.contextmanager
def _copy(conn: Conn, table: str, columns: Sequence[str], *, staged: bool) -> Iterator[Copy]:
    """Append rows in binary form. `staged` goes by way of a temporary table: where row-level
    security applies to the user, Postgres refuses COPY into the table itself.
    """
    names = SQL(", ").join(map(Identifier, columns))
    into = Identifier("pg_temp", f"staged_{table}") if staged else Identifier(table)
    parts = {"table": Identifier(table), "into": into, "names": names}
    if staged:
        # A session that is another program's next keeps nothing of ours.
        end = SQL("DROP" if is_pooled(conn) else "DELETE ROWS")
        make = (
            "CREATE TEMP TABLE IF NOT EXISTS {into} ON COMMIT {end}"
            " AS SELECT {names} FROM {table} WITH NO DATA"
        )
        conn.execute(SQL(make).format(end=end, **parts))
    statement = SQL("COPY {into} ({names}) FROM STDIN (FORMAT binary)").format(**parts)
    with conn.cursor() as cursor, cursor.copy(statement) as copy:
        yield copy
    if staged:
        # The commit empties the stage: a second round in this transaction would find the first
        # one there, and break the primary key.
        move = "INSERT INTO {table} ({names}) SELECT {names} FROM {into}"
        conn.execute(SQL(move).format(**parts))


def write_answers(conn: Conn, lease: Lease, answers: Sequence[Answer]) -> None:
    """Write a job's answers."""
    ours = lease.job_id, lease.generation
    with conn.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO answers (job_id, generation, rank, key, text, output, thought,"
            " confidence, votes, share, rollout_ids)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            [
                [
                    *[*ours, a.rank, a.normalised, a.text, a.output, a.thought, a.confidence],
                    *[a.votes, a.share, list(a.rollout_ids)],
                ]
                for a in answers
            ],
        )


def load(conn: Conn, job_id: UUID, *, schema: str = "public") -> tuple[list[Node], list[Rollout]]:
    """All nodes below the root and all rollouts of a job, in id order.

    From the tables; from the views of the same names with the schema of those.
    """
    nodes = _read(conn, job_id, (schema, "nodes"), records.NODE_COLUMNS, records.node)
    kept = (schema, "rollouts")
    return nodes, _read(conn, job_id, kept, records.ROLLOUT_COLUMNS, records.rollout)


def _read(
    conn: Conn,
    job_id: UUID,
    table: tuple[str, str],
    columns: Mapping[str, str],
    make: Callable[..., R],
) -> list[R]:
    query = SQL("SELECT {} FROM {} WHERE job_id = %s ORDER BY {}").format(
        SQL(", ").join(map(Identifier, columns)),
        Identifier(*table),
        Identifier(next(iter(columns))),
    )
    # Binary: as text a real is cut to the shortest decimal, not the float it holds.
    with conn.cursor(binary=True, row_factory=kwargs_row(make)) as cursor:
        return cursor.execute(query, [job_id]).fetchall()
