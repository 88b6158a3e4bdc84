"""Rows in their canonical form (marco_search.audit.canonical), straight from Postgres."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from struct import Struct
from typing import Any, LiteralString
from uuid import UUID

from psycopg.sql import SQL, Identifier

from marco_search.audit.proofs import Kinds, Row
from marco_search.store.db import Conn

_TYPE_AND_SIZE = Struct(">ii").unpack_from

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


def read(
    conn: Conn, kinds: Kinds, where: Where, *, ended: bool = False
) -> tuple[dict[UUID, Rows], dict[UUID, bytes]]:
    """All rows of some jobs, as `kinds` has them, and their salts, where there is one.

    With `ended` only of those that have ended.
    """
    condition, given = where
    tables = tuple((k.table, k.job, k.key, tuple(k.columns)) for k in kinds.values())
    with conn.pipeline():  # the caller's may be open: at this one's end the rows are there
        cursor = conn.cursor(binary=True).execute(_query(tables, condition, ended), given)
    result, names = cursor.pgresult, list(kinds)
    assert result is not None
    found: dict[bytes, Rows] = defaultdict(lambda: defaultdict(list))
    salts: dict[UUID, bytes] = {}
    get = result.get_value
    for i in range(result.ntuples):
        job_id, key = get(i, 1) or b"", get(i, 2) or b""
        row = int.from_bytes(key, "big", signed=True), _canonical(get(i, 4) or b"")
        found[job_id][names[int.from_bytes(get(i, 0) or b"", "big")]].append(row)
        salt = get(i, 3)
        if salt is not None:
            salts[UUID(bytes=job_id)] = salt
    return {
        UUID(bytes=job_id): {name: sorted(its) for name, its in kept.items()}
        for job_id, kept in found.items()
        if "outcome" in kept or not ended
    }, salts


@cache
def _query(
    tables: tuple[tuple[str, str, str | None, tuple[str, ...]], ...],
    condition: LiteralString,
    ended: bool,
) -> bytes:
    """One statement for all: a round trip and a plan for each would take longer than they run.

    Cached: composing it does, too.
    """
    parts = []
    for number, (table, job, key, columns) in enumerate(tables):
        names = {
            "number": number,
            "job": Identifier(job),
            "key": Identifier(key) if key else SQL("0"),
            "salt": SQL("NULL::uuid") if key else Identifier("salt"),
            "columns": SQL(", ").join(map(Identifier, columns)),
            "table": Identifier("public", table),
            "which": SQL(condition).format(Identifier(job)),
            "ended": SQL(" AND finished_at IS NOT NULL" if ended and not key else ""),
        }
        select = SQL(
            "SELECT {number}::integer, {job}, {key}::bigint, {salt}, ROW({columns})"
            " FROM {table} WHERE {which}{ended}"
        )
        parts.append(select.format(**names))
    return SQL(" UNION ALL ").join(parts).as_bytes()


def _canonical(record: bytes) -> bytes:
    """The row of a record in binary form, which has each column's type before its size."""
    at, count = 4, int.from_bytes(record[:4], "big")
    row = [record[2:4]]
    for _ in range(count):
        _, size = _TYPE_AND_SIZE(record, at)
        end = at + 8 + size if size > 0 else at + 8
        row.append(record[at + 4 : end])
        at = end
    return b"".join(row)
