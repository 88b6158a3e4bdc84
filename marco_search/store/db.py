"""Connections to Postgres: pooled, with deadlines, and errors that say what to do.

A `Database` opens nothing before it is first used. It may be shared by threads, never
across a fork.

A server can vanish silently: its machine lost power, a firewall dropped the connection. The
kernel notices when packets are no longer acknowledged; a peer that acknowledges but never
responds (a proxy, a frozen machine) is noticed by the time limit of `_Connection`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import fields
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, Concatenate, ParamSpec, TypeVar

import psycopg
from psycopg import Connection, IsolationLevel, errors, sql
from psycopg.abc import PQGen
from psycopg.errors import _WaitTimeout
from psycopg.rows import TupleRow, class_row
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout
from pydantic import BaseModel

from marco_search.errors import (
    AccessDenied,
    DatabaseUnavailable,
    RightsMissing,
    SchemaMismatch,
)
from marco_search.forks import start_over_in_child
from marco_search.store import postgres
from marco_search.store.postgres import advice, words

_MIGRATIONS = Path(__file__).parents[1] / "migrations" / "versions"
_BASE, *_, SCHEMA_REVISION = sorted(file.name[1:5] for file in _MIGRATIONS.glob("v*.py"))
"""The migration of version 0.1.0, and the newest one, which this code was written for."""
_LAST_WITH_EACH = "307fa1d"
"""The last commit with a migration for each change of the schema between versions."""

OLDEST_POSTGRES = 17

CHECKOUT_TIMEOUT_S = 10.0
# A statement of ours takes milliseconds: one that takes longer than this hangs. First the
# server ends it; a server that has not done so by ANSWER_S is gone.
ANSWER_S = 13.0
_CHECK_S = 3.0  # for the one statement that sees whether a kept connection still works
_SETTINGS = {
    "statement_timeout": "'12s'",
    "lock_timeout": "'10s'",
    "idle_in_transaction_session_timeout": "'60s'",
    "timezone": "'UTC'",
    "search_path": "public, audit",
}
_READ_ONLY = {"default_transaction_read_only": "on"}
# Use the indexes even while there are few rows: the same plan must work when there are many.
_PLANNED_ONCE = {"plan_cache_mode": "force_generic_plan", "enable_seqscan": "off", "jit": "off"}
# A transaction that was idle for too long, because this process was suspended. A retry may
# succeed on another connection.
_GONE = (errors.IdleInTransactionSessionTimeout, errors.TransactionTimeout)

Conn = Connection[TupleRow]
P = ParamSpec("P")
_R = TypeVar("_R")
M = TypeVar("M")


class _Connection(Connection[TupleRow]):
    """A connection that does not wait forever: see `ANSWER_S` and `allow`."""

    answer_s: float | None = None  # until `Database` has set it up
    revision: str | None = None  # of the schema when the connection was last taken

    def wait(self, gen: PQGen[_R], interval: float = 0.1, timeout: float | None = None) -> _R:
        """Raises OperationalError, and closes the connection, if the server falls silent."""
        if timeout is not None:
            return super().wait(gen, interval, timeout)
        try:
            return super().wait(gen, interval, self.answer_s)
        except _WaitTimeout:
            self.close()
            raise psycopg.OperationalError(
                f"the server has not answered for {self.answer_s:g} s"
            ) from None


def allow(conn: Conn, seconds: float | None) -> None:
    """Set the time limit of each statement in this transaction; None: no limit."""
    conn.execute(sql.SQL("SET LOCAL statement_timeout = {}").format(round((seconds or 0) * 1000)))
    if isinstance(conn, _Connection):
        conn.answer_s = None if seconds is None else max(ANSWER_S, seconds + 1)


_TREES = "ONLY public.nodes, ONLY public.rollouts, ONLY public.answers"
_TREES_SHOWN = "audit.nodes, audit.rollouts, audit.answers"
"""The views that an auditor reads instead."""


_of_parents: list[object] = []
"""Pools inherited by a fork. Never freed: freeing would wait for their lock."""


class Database:
    """A pool of connections to one database. A forked process opens its own."""

    def __init__(
        self,
        url: str,
        *,
        application: str,
        connections: int = 4,
        read_only: bool = False,
        planned_once: bool = False,
    ) -> None:
        """`url` as `locations.database_url` gives it; pg_stat_activity shows `application`.

        `read_only`: every transaction is, whatever is run in it. `planned_once`: each statement
        is planned once a session, for workers, whose statements take longer to plan than to run.
        Raises InvalidSettings if `url` is no Postgres URL.
        """
        self._conninfo = postgres.conninfo(url, application, writes=not read_only)
        self.shown = postgres.shown(url)
        self._connections = connections
        self._read_only = read_only
        self._settings = _SETTINGS | (_READ_ONLY if read_only else {})
        self._settings |= _PLANNED_ONCE if planned_once else {}
        self._pool: ConnectionPool[_Connection] | None = None
        self._views_only = False
        self.start_over()
        start_over_in_child(self)

    def start_over(self) -> None:
        """In a forked process: leave its connections to the parent."""
        if self._pool is not None:
            _of_parents.append(self._pool)
        self._pool = None
        self._lock = Lock()

    @contextmanager
    def transaction(self, *, one_moment: bool = False) -> Iterator[Conn]:
        """A connection in a transaction: committed at the end, rolled back on any error.

        `one_moment`: all its queries see one snapshot, so that a tree and what refers to it
        are consistent while a worker adds to both.
        Raises DatabaseUnavailable if Postgres can't be reached or does not respond in time,
        SchemaMismatch if its tables are not those of this version.
        """
        with self._errors(), ExitStack() as stack:
            conn = self._taken(stack)
            if conn.revision not in (None, SCHEMA_REVISION):
                raise not_migrated(conn.revision or None)
            if one_moment:
                conn.rollback()  # `_check` has begun one that sees what is new all the time
                conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            if is_pooled(conn):
                # The next transaction may be on another session of the server's.
                conn.execute(_set("SET LOCAL", self._settings))
                if self._read_only:
                    conn.execute("SET TRANSACTION READ ONLY")
            yield conn

    def call(
        self, step: Callable[Concatenate[Conn, P], _R], /, *given: P.args, **named: P.kwargs
    ) -> _R:
        """`step` of a connection and what else is given, in a transaction of its own."""
        with self.transaction() as conn:
            return step(conn, *given, **named)

    def connect(self) -> Conn:
        """A separate connection, outside the pool, in autocommit (for LISTEN).

        Where `is_pooled` says so, it hears no NOTIFY.
        """
        with self._errors():
            conn = _Connection.connect(self._conninfo, autocommit=True)
            self._prepare(conn)
            return conn

    @contextmanager
    def snapshot(self, of: str | None = None) -> Iterator[Conn]:
        """A connection in a read-only transaction with one snapshot, however long it takes.

        `of`: that of another, as pg_export_snapshot() named it. No trees are archived meanwhile.
        Raises SchemaMismatch.
        """
        with self._errors(), self.connect() as conn:
            check_schema(conn)
            trees = _TREES if reads_tables(conn) else _TREES_SHOWN
            conn.isolation_level = IsolationLevel.REPEATABLE_READ
            conn.read_only = True
            with conn.transaction():
                if of is not None:
                    conn.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(of))
                if is_pooled(conn):
                    conn.execute(_set("SET LOCAL", self._settings))
                if of is None:
                    # Before the first look: what is dropped is gone for earlier snapshots, too.
                    conn.execute(f"LOCK TABLE {trees} IN ACCESS SHARE MODE".encode())
                allow(conn, None)
                conn.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
                yield conn

    def close(self, wait_s: float = 5.0) -> None:
        """Close all pooled connections; wait this long for one that is being opened.

        The next use opens them again.
        """
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close(wait_s)

    def _taken(self, stack: ExitStack) -> _Connection:
        while True:
            with suppress(PoolClosed):  # by another thread: the next one is open
                return stack.enter_context(self._opened().connection())

    def _opened(self) -> ConnectionPool[_Connection]:
        with self._lock:
            if self._pool is not None:
                return self._pool
            # Checked directly: the pool would only report a timeout.
            with self.connect() as conn:
                check_schema(conn)
                self._views_only = not reads_tables(conn)
            self._pool = ConnectionPool(
                self._conninfo,
                kwargs={"autocommit": True},  # `_check` begins the transactions
                connection_class=_Connection,
                min_size=1,
                max_size=self._connections,
                timeout=CHECKOUT_TIMEOUT_S,
                configure=self._prepare,
                check=self._check,
                num_workers=1,
                open=True,
            )
            # Else the pool makes another meanwhile, and gives them out by turns: a second session
            # of the server's that plans and remembers everything once more.
            self._pool.wait(CHECKOUT_TIMEOUT_S)
            return self._pool

    def _prepare(self, conn: Conn) -> None:
        if isinstance(conn, _Connection):
            conn.answer_s = ANSWER_S
        # A pooler between us and the server has a number of its own for the session. It may give
        # every transaction to another session, so nothing is kept in one.
        if conn.execute("SELECT pg_backend_pid()").fetchone() != (conn.info.backend_pid,):
            conn.prepare_threshold = None
        else:
            conn.execute(_set("SET", self._settings))

    def _check(self, conn: _Connection) -> None:
        """Begin a transaction and note which schema it sees; raises if the connection is broken."""
        conn.answer_s = _CHECK_S
        try:
            # With the first query: a round trip less for each transaction.
            if self._views_only:
                conn.execute("BEGIN")
            else:
                conn.revision = _revision(conn, begin=True)
        except psycopg.OperationalError:
            if self._pool is not None:  # what broke one has broken the others
                self._pool.drain()
            raise
        finally:
            conn.answer_s = ANSWER_S

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except PoolTimeout as error:
            # The pool tries again ever more slowly; a new one tries when it is next asked.
            self.close(wait_s=0)
            # Connect once more: the pool does not keep the reason for its failure.
            try:
                psycopg.connect(self._conninfo, connect_timeout=2).close()
            except psycopg.Error as why:
                raise unavailable(self.shown, why) from why
            raise DatabaseUnavailable(
                f"{self.shown}: {error}; this process uses all {self._connections} of its own"
            ) from error
        except (errors.UndefinedTable, errors.UndefinedColumn) as error:
            # For an auditor `jobs` is the view, which has other columns.
            if self._views_only:
                raise _denied("it reads the views of some tenants only") from error
            raise SchemaMismatch(
                f"the database is not as this version makes it ({error.diag.message_primary}): "
                "run `marco migrate`"
            ) from error
        except errors.InsufficientPrivilege as error:
            raise _denied(error.diag.message_primary) from error
        except errors.ReadOnlySqlTransaction as error:
            if self._read_only:
                raise
            # A server that became a standby; DATABASE_URL may name another by now.
            raise unavailable(self.shown, error) from error
        except (psycopg.OperationalError, psycopg.InterfaceError, *_GONE) as error:
            raise unavailable(self.shown, error) from error


def select(conn: Conn, model: type[M], source: str, given: Any = ()) -> list[M]:
    """Rows as instances of `model`, whose fields name columns; `source` follows FROM."""
    known: Any = model
    names = known.model_fields if issubclass(known, BaseModel) else [f.name for f in fields(known)]
    columns = ", ".join(f'"{name}"' for name in names)
    query = f"SELECT {columns} FROM {source}"  # noqa: S608  # constants
    with conn.cursor(row_factory=class_row(model)) as cursor:
        return cursor.execute(query.encode(), given).fetchall()


def insert(conn: Conn, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, all with the same columns."""
    if rows:
        execute_for_each(conn, insertion(table, *rows[0]), rows)


def execute_for_each(conn: Conn, query: bytes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Run a statement with each row's values."""
    if len(rows) == 1:  # half the cost of a pipeline
        conn.execute(query, rows[0])
    elif rows:
        conn.cursor().executemany(query, rows)


@cache
def insertion(table: str, *columns: str) -> bytes:
    """The statement that inserts a row given by column name."""
    query = sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
        sql.Identifier("public", table),
        sql.SQL(", ").join(map(sql.Identifier, columns)),
        sql.SQL(", ").join(map(sql.Placeholder, columns)),
    )
    return query.as_bytes()


def is_pooled(conn: Conn) -> bool:
    """Whether a pooler (PgBouncer) may give each transaction on `conn` another session."""
    return conn.prepare_threshold is None


def unavailable(shown: str, error: psycopg.Error) -> DatabaseUnavailable:
    """The error to raise for one of Postgres at `shown`: the same call may succeed later."""
    return DatabaseUnavailable("; ".join(filter(None, (f"{shown}: {words(error)}", advice(error)))))


def _set(how: str, settings: Mapping[str, str]) -> bytes:
    return "; ".join(f"{how} {name} = {value}" for name, value in settings.items()).encode()


def _denied(why: str | None) -> AccessDenied:
    return AccessDenied(
        f"this login may not do that ({why}): use a DATABASE_URL of the app's or the owner's"
    )


def reads_tables(conn: Conn) -> bool:
    """Whether this login may access the tables; an auditor of some tenants has only the views."""
    return conn.execute("SELECT has_schema_privilege('public', 'USAGE')").fetchone() == (True,)


def require_tables(conn: Conn, what: str) -> None:
    """Raises RightsMissing if `what` needs rows that this login may not read."""
    if not reads_tables(conn):
        raise RightsMissing(
            f"{what} needs every row of the chain and of the jobs, as it is stored; this login "
            "sees its tenants through views only: set DATABASE_URL to a login that is a member "
            "of the role ..._auditor_all, which reads all and changes nothing (docs/sql.md)"
        )


def check_schema(conn: Conn) -> None:
    """Raises SchemaMismatch if the database is not at this version's migration, or incomplete."""
    if not reads_tables(conn):
        # An auditor: it may read the views, and not the table that names the migration.
        if conn.execute("SELECT to_regclass('audit.jobs')").fetchone() == (None,):
            raise not_migrated(None)
        return
    if conn.execute("SELECT to_regclass('public.alembic_version')").fetchone() == (None,):
        raise not_migrated(None)
    revision = _revision(conn)
    if revision != SCHEMA_REVISION:
        raise not_migrated(revision or None)
    if conn.execute(_WHOLE).fetchone() != (True,):
        raise SchemaMismatch(
            "the database lacks views, functions or partitions of this version: run "
            "`marco migrate`, which makes them"
        )


def _revision(conn: Conn, *, begin: bool = False) -> str:
    """The database's migration; empty: none. `begin` a transaction to look in."""
    query = b"SELECT version_num FROM public.alembic_version"
    try:
        cursor = conn.execute(b"BEGIN; " + query if begin else query)
        if begin:
            cursor.nextset()
        row = cursor.fetchone()
    except errors.UndefinedTable:
        return ""
    return str(row[0]) if row else ""


# What follows from the code is made with the last migration; an older `marco migrate`, or
# anyone with the right, may have removed it since.
_WHOLE = """
    SELECT to_regclass('audit.jobs') IS NOT NULL
        AND to_regprocedure('public.ensure_partitions(integer)') IS NOT NULL
        AND EXISTS (SELECT FROM pg_inherits WHERE inhparent = 'public.audit_log'::regclass)
"""


def not_migrated(revision: str | None) -> SchemaMismatch:
    """The error for a database at `revision`; None: it has no tables of marco-search."""
    if revision is None:
        has = "has no tables of marco-search"
    elif revision > SCHEMA_REVISION or not revision.isdecimal():
        return SchemaMismatch(
            f"this database is at migration {revision}, newer than this program "
            f"({SCHEMA_REVISION}): use the version of marco-search that it was migrated with"
        )
    elif revision < _BASE:
        return SchemaMismatch(
            f"this database is at migration {revision}, older than version 0.1.0 ({_BASE}), the "
            "oldest that can be migrated: migrate it with 0.1.0 first"
        )
    elif not any(_MIGRATIONS.glob(f"v{revision}_*.py")):
        return SchemaMismatch(
            f"this database is at migration {revision}, between two versions: migrate it with "
            f"commit {_LAST_WITH_EACH} of marco-search first"
        )
    else:
        has = f"is at migration {revision}"
    return SchemaMismatch(
        f"the database {has}, this version needs {SCHEMA_REVISION}: run `marco migrate`"
    )
