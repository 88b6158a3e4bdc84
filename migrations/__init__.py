"""Brings a database to this version's schema.

All in one transaction: either the database is brought to the revision asked for, with views,
partitions and rights, or it stays as it was, also if it is interrupted. Several may start at
once (every worker of a rolling deploy): one migrates, which locks the table that names the
revision, as the owner may and no reader; the others wait and find nothing to do. Each statement
waits but a moment for the locks it needs: a queue behind a waiting ALTER TABLE stops every
worker, a failed migration is simply tried again. No setting outlives the transaction: a pooler
would pass it on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg import errors
from sqlalchemy import Connection, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from marco_search import settings
from marco_search.errors import DatabaseUnavailable, MarcoError, RightsMissing, SchemaMismatch
from marco_search.migrations import derived
from marco_search.store import postgres
from marco_search.store.db import OLDEST_POSTGRES, not_migrated, unavailable
from marco_search.store.postgres import ENCODING, words

_WHO = "let DATABASE_URL name a member of the owner's role, or a superuser"
_LIMITS = """
    SET LOCAL statement_timeout = '600s'; SET LOCAL lock_timeout = '120s';
    SET LOCAL idle_in_transaction_session_timeout = '60s'; SET LOCAL search_path = public
"""
# Alembic makes the same table, but only after it could have been locked.
_VERSION_TABLE = """
    CREATE TABLE IF NOT EXISTS public.alembic_version (
        version_num varchar(32) NOT NULL, CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
    )
"""

__all__ = ["current", "grant_roles", "upgrade"]


def current(url: str) -> str | None:
    """The migration that the database is at; None if it holds nothing of ours.

    Raises DatabaseUnavailable if it can't be reached.
    """
    with connected(url) as connection:
        return MigrationContext.configure(connection).get_current_revision()


def upgrade(url: str, revision: str = "head") -> str | None:
    """Run all migrations up to `revision`.

    At the newest one views, partitions and roles are brought up to date too. Returns why the
    roles were left as they are, if this user may not make them; `grant_roles` does it later.
    Raises DatabaseUnavailable if the database can't be reached or is locked by others,
    SchemaMismatch if it is newer than this program, older than version 0.1.0 or not in UTF-8,
    RightsMissing.
    """
    config = _config()
    script = ScriptDirectory.from_config(config)
    wanted = script.as_revision_number(revision)
    with connected(url) as connection:
        config.attributes["connection"] = connection
        conn = _psycopg(connection)
        _require_server(conn)
        _lock(conn)
        before = MigrationContext.configure(connection).get_current_revision()
        # Nothing is done to a database that a later version migrated.
        if before not in {None, *(known.revision for known in script.walk_revisions())}:
            raise not_migrated(before)
        if before != wanted:
            derived.drop(conn)
        command.upgrade(config, revision)
        refused = derived.make(conn) if wanted == script.get_current_head() else None
        connection.commit()
    return refused


def grant_roles(url: str) -> str | None:
    """Make the roles and give them their rights on a migrated database; why not, if refused.

    Raises DatabaseUnavailable if the database can't be reached.
    """
    with connected(url) as connection:
        conn = _psycopg(connection)
        conn.execute(derived.LOCK)
        refused = derived.grant(conn, settings.load().role_prefix)
        conn.commit()
    return refused


def _config() -> Config:
    config = Config()
    # Options are interpolated: a percent sign in the path must be doubled.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _psycopg(connection: Connection) -> psycopg.Connection[Any]:
    conn = connection.connection.driver_connection
    assert isinstance(conn, psycopg.Connection)
    return conn


def _require_server(conn: psycopg.Connection[Any]) -> None:
    version = conn.info.server_version // 10_000
    if version < OLDEST_POSTGRES:
        raise SchemaMismatch(f"Postgres {version} is too old: use {OLDEST_POSTGRES} or later")
    encoding = conn.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise SchemaMismatch(f"the database's encoding is {encoding}: {ENCODING}")


def _lock(conn: psycopg.Connection[Any]) -> None:
    """Wait until nobody else migrates."""
    conn.execute(_LIMITS)
    try:
        conn.execute(_VERSION_TABLE)
    except errors.UniqueViolation:  # another process made it meanwhile
        conn.rollback()
        conn.execute(_LIMITS)
    conn.execute(derived.LOCK)
    conn.execute("SET LOCAL lock_timeout = '5s'")


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    """A SQLAlchemy connection to the database at `url`, closed at the end.

    Raises InvalidSettings for an address that can't be read, DatabaseUnavailable.
    """
    conninfo = postgres.conninfo(url, "marco migrate")

    def connect() -> Any:
        # Prepared statements would outlive the transaction: a pooler gives them to others.
        return psycopg.connect(conninfo, prepare_threshold=None)

    engine = create_engine("postgresql+psycopg://", creator=connect, poolclass=NullPool)
    try:
        with engine.connect() as connection:
            yield connection
    except (DBAPIError, psycopg.Error) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        refusal = _refusal(cause, url) if isinstance(cause, psycopg.Error) else None
        if refusal is None:
            raise
        raise refusal from error


def _refusal(error: psycopg.Error, url: str) -> MarcoError | None:
    """What to raise for an error that is no bug of ours. All was rolled back."""
    if isinstance(error, errors.InsufficientPrivilege):
        return RightsMissing(f"{words(error)}: {_WHO}")
    if isinstance(error, errors.DependentObjectsStillExist):
        detail = " ".join((error.diag.message_detail or "").split())
        return SchemaMismatch(
            f"nothing was changed, {words(error)} ({detail}): drop what was added to the database"
        )
    if isinstance(error, errors.LockNotAvailable):
        return DatabaseUnavailable(f"{postgres.shown(url)}: {_in_use(url)}")
    if isinstance(error, psycopg.OperationalError | errors.ReadOnlySqlTransaction):
        return unavailable(postgres.shown(url), error)
    return None


def _in_use(url: str) -> str:
    """Who works with the tables and views at the moment."""
    with psycopg.connect(postgres.conninfo(url, "marco migrate")) as conn:
        rows = conn.execute(
            "SELECT DISTINCT usename || ' (pid ' || pid || ')' FROM pg_locks"
            " JOIN pg_stat_activity USING (pid) JOIN pg_class AS c ON c.oid = relation"
            " WHERE database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            " AND relnamespace::regnamespace::text IN ('public', 'audit', 'partitions')"
            " AND pid <> pg_backend_pid() LIMIT 5"
        ).fetchall()
    who = ", ".join(row[0] for row in rows) or "a session that has ended since"
    return (
        f"tables or views are in use by {who}: nothing was changed. Try again, or have a "
        "superuser end those sessions (pg_terminate_backend)"
    )
