"""Rows in their canonical form (marco_search.audit.canonical), straight from Postgres."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from uuid import UUID

from psycopg.sql import SQL, Composable, Identifier, Literal

from marco_search.audit.proofs import Kind, Kinds, Row
from marco_search.store.db import Conn

_HEADER_BYTES = 19  # of COPY's binary format: signature, flags, length of the extension
_TRAILER = b"\xff\xff"
_KEY_AT = 26  # after the column count, the job's id and the key's length

Rows = dict[str, list[Row]]
"""By kind, each in key order."""


def of_jobs(
    conn: Conn, job_ids: Sequence[UUID], kinds: Kinds, *, ended: bool = False
) -> dict[UUID, Rows]:
    """All rows of these jobs, as `kinds` has them; with `ended` only of those that have ended."""
    ids = Literal(list(job_ids))

    def among(kind: Kind) -> Composable:
        condition: Composable = SQL("{} = ANY ({})").format(Identifier(kind.job), ids)
        return (
            condition + SQL(" AND finished_at IS NOT NULL") if ended and not kind.key else condition
        )

    rows = _by_job(conn, kinds, {name: among(kind) for name, kind in kinds.items()})
    return {i: found for i, found in rows.items() if "outcome" in found} if ended else rows


def between(conn: Conn, after: UUID | None, last: UUID | None, kinds: Kinds) -> dict[UUID, Rows]:
    """All rows of the jobs with after < id <= last (None: no bound), also of jobs without one."""

    def inside(kind: Kind) -> Composable:
        column = Identifier(kind.job)
        parts: list[Composable] = [SQL("true")]
        if after is not None:
            parts.append(SQL("{} > {}").format(column, Literal(after)))
        if last is not None:
            parts.append(SQL("{} <= {}").format(column, Literal(last)))
        return SQL(" AND ").join(parts)

    return _by_job(conn, kinds, {name: inside(kind) for name, kind in kinds.items()})


def _by_job(conn: Conn, kinds: Kinds, conditions: dict[str, Composable]) -> dict[UUID, Rows]:
    found: dict[bytes, Rows] = defaultdict(lambda: defaultdict(list))
    for name, condition in conditions.items():
        for row in _copy(conn, kinds[name], condition):
            # The key's own length says how wide it is.
            width = int.from_bytes(row[_KEY_AT - 4 : _KEY_AT], "big")
            key = row[_KEY_AT : _KEY_AT + width] if kinds[name].key else b""
            found[row[6:22]][name].append((int.from_bytes(key, "big", signed=True), row))
    return {UUID(bytes=job_id): dict(rows) for job_id, rows in found.items()}


def _copy(conn: Conn, kind: Kind, condition: Composable) -> Iterator[bytes]:
    order = [kind.job, kind.key] if kind.key else [kind.job]
    statement = SQL(
        "COPY (SELECT {} FROM {} WHERE {} ORDER BY {}) TO STDOUT (FORMAT binary)"
    ).format(
        SQL(", ").join(map(Identifier, kind.columns)),
        Identifier("public", kind.table),
        condition,
        SQL(", ").join(map(Identifier, order)),
    )
    with conn.cursor() as cursor, cursor.copy(statement) as copy:
        head = _HEADER_BYTES
        for block in copy:  # Postgres sends each row as one
            row = bytes(block[head:])
            head = 0
            if row and row != _TRAILER:
                yield row
