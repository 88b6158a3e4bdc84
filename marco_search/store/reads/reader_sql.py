"""A reader's SQL: one statement, read-only, with a time limit, rolled back in any case."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import psycopg
from psycopg import Connection, errors, sql
from psycopg.abc import Loader
from psycopg.pq import ConnStatus, ExecStatus
from psycopg.pq.abc import PGresult
from psycopg.types.datetime import TimestampLoader, TimestamptzLoader
from psycopg.types.string import TextLoader

from marco_search.errors import DatabaseUnavailable, QueryRefused
from marco_search.store.db import allow

_STREAMED_ROWS = 100  # fetched at once: a query that returns millions is cut off early


class JsonText(str):
    """A json or jsonb as Postgres writes it: it may hold numbers that Python does not parse."""

    __slots__ = ()


class _Json(TextLoader):
    def load(self, data: Any) -> JsonText:
        return JsonText(super().load(data))


def _or_text(loader: type[Loader]) -> type[Loader]:
    """The loader, but the text for infinity and years that a datetime does not reach."""

    class OrText(loader):  # type: ignore[misc, valid-type]
        def load(self, data: Any) -> Any:
            try:
                return super().load(data)
            except psycopg.DataError:
                return bytes(data).decode()

    return OrText


_LOADERS: dict[str, type[Loader]] = {
    "json": _Json,
    "jsonb": _Json,
    "timestamp": _or_text(TimestampLoader),
    "timestamptz": _or_text(TimestamptzLoader),
    # Python's types lack infinity, 24:00 and months.
    **dict.fromkeys(("date", "time", "timetz", "interval"), TextLoader),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryResult:
    """Rows as Python values, and whether there were more than asked for."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    more: bool


def run_query(
    conn: Connection[Any], query: str, *, limit: int | None = None, timeout_s: float = 30.0
) -> QueryResult:
    """The first `limit` rows (None: all) of a query.

    Raises QueryRefused for what is not valid, returns no rows, writes, or takes longer than
    `timeout_s` seconds. The connection may be in autocommit or not; it is left idle.
    """
    if "\x00" in query or any("\ud800" <= character <= "\udfff" for character in query):
        raise QueryRefused("the query is not text: it holds a NUL or bytes that are not UTF-8")
    with _refusing(conn, timeout_s), conn.transaction(force_rollback=True):
        conn.execute("SET TRANSACTION READ ONLY")
        allow(conn, timeout_s)
        columns = _described(conn, query)
        with conn.cursor() as cursor:
            for name, loader in _LOADERS.items():
                cursor.adapters.register_loader(name, loader)
            # One statement only: a stream is sent by the protocol that takes no more.
            stream = cursor.stream(query.encode(), size=_STREAMED_ROWS)
            with closing(cast("Generator[tuple[Any, ...], None, None]", stream)) as fetched:
                rows = tuple(islice(fetched, None if limit is None else limit + 1))
    more = limit is not None and len(rows) > limit
    return QueryResult(columns=columns, rows=rows[:limit], more=more)


def with_values(query: str, values: Mapping[str, str]) -> str:
    """The query with every :'NAME' replaced by the value as a literal, as psql does.

    Raises QueryRefused for a name without a value.
    """

    def put(found: re.Match[str]) -> str:
        name = found[1]
        if name not in values:
            raise QueryRefused(f":'{name}' has no value: give one with --set {name}=VALUE")
        return sql.quote(values[name])

    return re.sub(r"(?<!:):'(\w+)'", put, query)


def _described(conn: Connection[Any], query: str) -> tuple[str, ...]:
    """Names of the columns that the query will return, from Postgres, without running it.

    What returns none (COPY, DO, SET, an UPDATE) is refused here: a read-only transaction
    alone would let COPY ... TO PROGRAM through.
    """
    _checked(conn, conn.pgconn.prepare(b"", query.encode()))
    described = _checked(conn, conn.pgconn.describe_prepared(b""))
    if described.nparams:
        raise QueryRefused(
            "the query has parameters ($1): write values into it, or :'NAME' and --set NAME=VALUE"
        )
    names = [(described.fname(i) or b"").decode() for i in range(described.nfields)]
    if not names:
        raise QueryRefused("the statement returns no rows: only queries can be run here")
    return tuple(_distinct(names))


def _checked(conn: Connection[Any], result: PGresult) -> PGresult:
    if conn.pgconn.status != ConnStatus.OK:
        raise psycopg.OperationalError(conn.pgconn.get_error_message())
    if result.status != ExecStatus.COMMAND_OK:
        message = conn.pgconn.error_message.decode(errors="replace")
        if "multiple commands" in message:  # Postgres' words are about a prepared statement
            raise QueryRefused("several statements: give one at a time, without a `;` between")
        raise QueryRefused(message.strip().removeprefix("ERROR:").strip())
    return result


def _distinct(names: Sequence[str]) -> Iterator[str]:
    """The names; "count" given again becomes "count_2", so that a row can be an object."""
    seen: dict[str, int] = {}
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        yield name if seen[name] == 1 else f"{name}_{seen[name]}"


@contextmanager
def _refusing(conn: Connection[Any], timeout_s: float) -> Iterator[None]:
    try:
        yield
    except errors.QueryCanceled:
        raise QueryRefused(
            f"took longer than {timeout_s:g} s and was stopped; --timeout sets the limit"
        ) from None
    except psycopg.Error as error:
        if conn.broken or conn.closed:
            raise DatabaseUnavailable(
                f"the connection ended while the query ran: {str(error).strip()}"
            ) from error
        place = error.diag.statement_position
        where = f" (at character {place})" if place else ""
        raise QueryRefused(f"{error.diag.message_primary or error}{where}") from None
