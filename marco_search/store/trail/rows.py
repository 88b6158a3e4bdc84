"""Rows in their canonical form (marco_search.audit.canonical), straight from Postgres."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from struct import pack
from typing import Any, LiteralString
from uuid import UUID

from psycopg.pq.abc import PGresult
from psycopg.sql import SQL, Identifier

from marco_search.audit.proofs import Kinds, Row
from marco_search.store.db import Conn

Rows = dict[str, list[Row]]
"""By kind, each in key order."""
Where = tuple[LiteralString, dict[str, Any]]
"""A condition on the job's id, whose column is {0} in it, and its parameters."""


def of_jobs(job_ids: Sequence[UUID]) -> Where:
    """The rows of these jobs."""
    if len(job_ids) == 1:  # then Postgres looks into one partition only
        return "{0} = %(id)s", {"id": job_ids[0]}
    return "{0} = ANY (%(ids)s)", {"ids": list(job_ids)}


def between(after: UUID | None, last: UUID | None) -> Where:
    """The rows of jobs with after < id <= last (None: no bound), also of jobs without a row."""
    low: LiteralString = "{0} > %(after)s" if after else "true"
    high: LiteralString = "{0} <= %(last)s" if last else "true"
    return f"{low} AND {high}", {"after": after, "last": last}


def read(conn: Conn, kinds: Kinds, where: Where, *, ended: bool = False) -> dict[UUID, Rows]:
    """All rows of some jobs, as `kinds` has them; with `ended` only of those that have ended."""
    condition, given = where
    cursors = {}
    with conn.pipeline():
        for name, kind in kinds.items():
            extra: LiteralString = " AND finished_at IS NOT NULL" if ended and not kind.key else ""
            keys = (kind.job, kind.key) if kind.key else (kind.job,)
            query = _query(kind.table, tuple(kind.columns), keys, condition + extra)
            cursors[name] = conn.cursor(binary=True).execute(query, given)
    found: dict[bytes, Rows] = defaultdict(lambda: defaultdict(list))
    for name, kind in kinds.items():
        result = cursors.pop(name).pgresult
        assert result is not None
        for i, row in enumerate(_canonical(result)):
            job_id, key = (result.get_value(i, j) or b"" for j in (0, 1))
            number = int.from_bytes(key, "big", signed=True) if kind.key else 0
            found[job_id][name].append((number, row))
    return {
        UUID(bytes=job_id): dict(rows)
        for job_id, rows in found.items()
        if "outcome" in rows or not ended
    }


def salts(conn: Conn, where: Where) -> dict[UUID, bytes | None]:
    """The salt of each job; None: it was destroyed."""
    condition, given = where
    found = conn.execute(_query("jobs", ("id", "salt"), ("id",), condition), given)
    return {job_id: salt and salt.bytes for job_id, salt in found}


@cache
def _query(
    table: str, columns: tuple[str, ...], keys: tuple[str, ...], condition: LiteralString
) -> bytes:
    """Cached: composing it takes longer than running it."""
    query = SQL("SELECT {} FROM {} WHERE {} ORDER BY {}").format(
        SQL(", ").join(map(Identifier, columns)),
        Identifier("public", table),
        SQL(condition).format(Identifier(keys[0])),
        SQL(", ").join(map(Identifier, keys)),
    )
    return query.as_bytes()


def _canonical(result: PGresult) -> Iterator[bytes]:
    columns, get = range(result.nfields), result.get_value
    head, null = pack(">h", result.nfields), pack(">i", -1)
    for i in range(result.ntuples):
        row = [head]
        for j in columns:
            value = get(i, j)
            row += (null,) if value is None else (pack(">i", len(value)), value)
        yield b"".join(row)
