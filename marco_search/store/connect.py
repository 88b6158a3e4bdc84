"""Connections to Postgres: pooled, with deadlines, and errors that say what to do.

A `Database` opens nothing before it is first used. It may be shared by threads, never
across a fork.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import psycopg
from psycopg import Connection, errors
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from marco_search.errors import (
    AccessDenied,
    DatabaseUnavailable,
    InvalidSettings,
    RightsMissing,
    SchemaMismatch,
)
from marco_search.settings import without_password

SCHEMA_REVISION = "0005"
"""The migration this code was written for (the newest one in migrations/versions)."""

CONNECT_TIMEOUT_S = 5
CHECKOUT_TIMEOUT_S = 10.0
# A statement of ours takes milliseconds: one that takes longer than this hangs.
_SESSION = """
    SET statement_timeout = '30s'; SET lock_timeout = '10s';
    SET idle_in_transaction_session_timeout = '60s'; SET timezone = 'UTC';
    SET search_path = public, audit
"""
# A transaction that stood still for too long, because this process did. The same may well
# succeed on another connection.
_GONE = (errors.IdleInTransactionSessionTimeout, errors.TransactionTimeout)
_READ_ONLY = "; SET default_transaction_read_only = on"

Conn = Connection[TupleRow]


class Database:
    """A pool of connections to one database."""

    def __init__(
        self, url: str, *, application: str, connections: int = 4, read_only: bool = False
    ) -> None:
        """`url` as `locations.database_url` gives it; pg_stat_activity shows `application`.

        `read_only`: every transaction is, whatever is run in it.
        Raises InvalidSettings if `url` is no Postgres URL.
        """
        self._conninfo = _conninfo(url, application)
        self._shown = without_password(url)
        self._connections = connections
        self._read_only = read_only
        self._session = _SESSION + (_READ_ONLY if read_only else "")
        self._pool: ConnectionPool[Conn] | None = None
        self._lock = Lock()
        self._pid = 0
        self._views_only = False

    @contextmanager
    def transaction(self) -> Iterator[Conn]:
        """A connection in a transaction: committed at the end, rolled back on any error.

        Raises DatabaseUnavailable if Postgres can't be reached or does not answer in time,
        SchemaMismatch if its tables are not those of this version.
        """
        with self._errors(), self._opened().connection() as conn:
            yield conn

    def connect(self) -> Conn:
        """A connection of one's own, outside the pool, in autocommit (for LISTEN)."""
        with self._errors():
            conn = psycopg.connect(self._conninfo, autocommit=True)
            self._prepare(conn)
            return conn

    def close(self) -> None:
        """Close all pooled connections. The next use opens them again."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None and self._pid == os.getpid():
            pool.close()

    def _opened(self) -> ConnectionPool[Conn]:
        with self._lock:
            if self._pool is not None:
                return self._pool
            # Asked directly: the pool would only say that it timed out.
            with self.connect() as conn:
                check_schema(conn)
                self._views_only = not reads_tables(conn)
            self._pid = os.getpid()
            self._pool = ConnectionPool(
                self._conninfo,
                min_size=1,
                max_size=self._connections,
                timeout=CHECKOUT_TIMEOUT_S,
                configure=self._prepare,
                check=ConnectionPool.check_connection,
                num_workers=1,
                open=True,
            )
            return self._pool

    def _prepare(self, conn: Conn) -> None:
        conn.execute(self._session)
        conn.commit()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (PoolTimeout, PoolClosed) as error:
            # The pool tries again ever more slowly; a new one tries when it is next asked.
            self.close()
            raise DatabaseUnavailable(f"no connection to {self._shown}: {error}") from error
        except errors.UndefinedTable as error:
            raise _not_migrated(None) from error
        except errors.InsufficientPrivilege as error:
            raise _denied(error.diag.message_primary) from error
        except errors.UndefinedColumn as error:
            if self._views_only:  # an auditor: `jobs` is the view, which has other columns
                raise _denied("it reads the views of some tenants only") from error
            raise SchemaMismatch(
                f"the database was migrated past this version: {error.diag.message_primary}"
            ) from error
        except errors.ReadOnlySqlTransaction as error:
            if self._read_only:
                raise
            # A server that became a standby; DATABASE_URL may name another by now.
            raise DatabaseUnavailable(f"{self._shown}: {error.diag.message_primary}") from error
        except (psycopg.OperationalError, psycopg.InterfaceError, *_GONE) as error:
            # libpq's own words name host, port and database, never the password.
            raise DatabaseUnavailable(
                f"{self._shown}: {str(error).strip()}; see that Postgres runs and DATABASE_URL "
                "is right (marco doctor)"
            ) from error


def _denied(why: str | None) -> AccessDenied:
    return AccessDenied(
        f"this login may not do that ({why}): use a DATABASE_URL of the app's or the owner's"
    )


def _conninfo(url: str, application: str) -> str:
    try:
        given = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        # Its message repeats the URL, with the password.
        raise InvalidSettings(
            "DATABASE_URL: not a Postgres URL; write postgresql://user:password@host:port/database"
        ) from None
    defaults: dict[str, Any] = {
        "application_name": application,
        "connect_timeout": CONNECT_TIMEOUT_S,
    }
    return make_conninfo(**(defaults | given))


def reads_tables(conn: Conn) -> bool:
    """Whether this login may name the tables; an auditor of some tenants has views only."""
    return conn.execute("SELECT has_schema_privilege('public', 'USAGE')").fetchone() == (True,)


def require_tables(conn: Conn, what: str) -> None:
    """Raises RightsMissing if `what` takes rows that this login may not read."""
    if not reads_tables(conn):
        raise RightsMissing(
            f"{what} takes every row of the chain and of the jobs, as it is stored; this login "
            "sees its tenants through views only: set DATABASE_URL to a login that is a member "
            "of the role ..._auditor_all, which reads all and changes nothing (docs/sql.md)"
        )


def check_schema(conn: Conn) -> None:
    """Raises SchemaMismatch if the database's migration is not the one of this version."""
    if not reads_tables(conn):
        # An auditor: it may read the views, and not the table that names the migration.
        if conn.execute("SELECT to_regclass('audit.jobs')").fetchone() == (None,):
            raise _not_migrated(None)
        return
    if conn.execute("SELECT to_regclass('alembic_version')").fetchone() == (None,):
        raise _not_migrated(None)
    row = conn.execute("SELECT version_num FROM alembic_version").fetchone()
    if row is None or row[0] != SCHEMA_REVISION:
        raise _not_migrated(row[0] if row else None)


def _not_migrated(revision: str | None) -> SchemaMismatch:
    has = f"is at migration {revision}" if revision else "has no tables of marco-search"
    return SchemaMismatch(
        f"the database {has}, this version needs {SCHEMA_REVISION}: run `marco migrate`"
    )
