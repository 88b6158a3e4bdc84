"""Rows in their canonical form (marco_search.audit.canonical), straight from Postgres."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from uuid import UUID

from psycopg.sql import SQL, Composable, Identifier, Literal

from marco_search.audit.proofs import Kind, Kinds, Row
from marco_search.store.db import Conn

_HEADER_BYTES = 19  # of COPY's binary format: signature, flags, length of the extension
_TRAILER = b"\xff\xff"
_KEY_AT = 26  # after the column count, the job's id and the key's length

Rows = dict[str, list[Row]]
"""By kind, each in key order."""
Where = Callable[[Composable], Composable]
"""A condition on the column that holds the job's id."""


def of_jobs(job_ids: Sequence[UUID]) -> Where:
    """The rows of these jobs."""
    ids = SQL(Literal(list(job_ids)).as_string())  # once: it is asked for of each kind of row
    return lambda job: SQL("{} = ANY ({})").format(job, ids)


def between(after: UUID | None, last: UUID | None) -> Where:
    """The rows of jobs with after < id <= last (None: no bound), also of jobs without a row."""

    def inside(job: Composable) -> Composable:
        low = SQL("{} > {}").format(job, Literal(after)) if after else SQL("true")
        high = SQL("{} <= {}").format(job, Literal(last)) if last else SQL("true")
        return SQL(" AND ").join([low, high])

    return inside


def read(conn: Conn, kinds: Kinds, where: Where, *, ended: bool = False) -> dict[UUID, Rows]:
    """All rows of some jobs, as `kinds` has them; with `ended` only of those that have ended."""
    found: dict[bytes, Rows] = defaultdict(lambda: defaultdict(list))
    for name, kind in kinds.items():
        condition = where(Identifier(kind.job))
        if ended and not kind.key:
            condition = condition + SQL(" AND finished_at IS NOT NULL")
        for row in _copy(conn, kind, condition):
            # The key's own length says how wide it is.
            width = int.from_bytes(row[_KEY_AT - 4 : _KEY_AT], "big")
            key = row[_KEY_AT : _KEY_AT + width] if kind.key else b""
            found[row[6:22]][name].append((int.from_bytes(key, "big", signed=True), row))
    return {
        UUID(bytes=job_id): dict(rows)
        for job_id, rows in found.items()
        if "outcome" in rows or not ended
    }


def salts(conn: Conn, where: Where) -> dict[UUID, bytes | None]:
    """The salt of each job; None: it was destroyed."""
    query = SQL("SELECT id, salt FROM public.jobs WHERE {}").format(where(Identifier("id")))
    return {job_id: salt and salt.bytes for job_id, salt in conn.execute(query)}


@cache
def _around(table: str, columns: tuple[str, ...], order: tuple[str, ...]) -> tuple[bytes, bytes]:
    """The statement before and after its condition: composing it takes longer than running it."""
    names, by = (SQL(", ").join(map(Identifier, each)) for each in (columns, order))
    begin = SQL("COPY (SELECT {} FROM {} WHERE ").format(names, Identifier("public", table))
    end = SQL(" ORDER BY {}) TO STDOUT (FORMAT binary)").format(by)
    return begin.as_bytes(), end.as_bytes()


def _copy(conn: Conn, kind: Kind, condition: Composable) -> Iterator[bytes]:
    order = (kind.job, kind.key) if kind.key else (kind.job,)
    begin, end = _around(kind.table, tuple(kind.columns), order)
    with conn.cursor() as cursor, cursor.copy(begin + condition.as_bytes(conn) + end) as copy:
        head = _HEADER_BYTES
        for block in copy:  # Postgres sends each row as one
            row = bytes(block[head:])
            head = 0
            if row and row != _TRAILER:
                yield row
