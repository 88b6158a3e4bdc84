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

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import psycopg
from psycopg import errors

from marco_search import settings
from marco_search.audit.chain import FIRST, follow
from marco_search.errors import DatabaseUnavailable, MarcoError, RightsMissing, SchemaMismatch
from marco_search.migrations import derived
from marco_search.store import address, db
from marco_search.store.db import BASE_REVISION, OLDEST_POSTGRES, SCHEMA_REVISION, Conn
from marco_search.store.failures import ENCODING, words

_STEPS = {
    path.name[1:5]: path for path in sorted(Path(__file__).parent.glob("versions/v[0-9]*.sql"))
}
"""One file for each migration, by revision. A released one is never edited."""
_WHO = "let DATABASE_URL name a member of the owner's role, or a superuser"
_LIMITS = """
    SET LOCAL statement_timeout = '600s'; SET LOCAL lock_timeout = '120s';
    SET LOCAL idle_in_transaction_session_timeout = '60s'; SET LOCAL search_path = public
"""
_VERSION_TABLE = """
    CREATE TABLE IF NOT EXISTS public.alembic_version (
        version_num varchar(32) NOT NULL, CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
    )
"""  # Alembic ran the migrations of version 0.1.0


def current(url: str) -> str | None:
    """The migration that the database is at; None if it holds nothing of ours.

    Raises DatabaseUnavailable if it can't be reached.
    """
    with _connected(url) as conn:
        return db.revision(conn) or None


def upgrade(url: str, revision: str = SCHEMA_REVISION) -> str | None:
    """Run all migrations up to `revision`.

    At the newest one views, partitions and roles are brought up to date too. Returns why the
    roles were left as they are, if this user may not make them; `grant_roles` does it later.
    Raises DatabaseUnavailable if the database can't be reached or is locked by others,
    SchemaMismatch if it is newer than this program, older than version 0.1.0 or not in UTF-8,
    RightsMissing.
    """
    with _connected(url) as conn:
        _require_server(conn)
        _lock(conn)
        before = db.revision(conn)
        # Nothing is done to a database that a later version migrated.
        if before not in {"", *_STEPS}:
            raise db.not_migrated(before)
        steps = [number for number in _STEPS if before < number <= revision]
        if steps:
            derived.drop(conn)
        for number in steps:
            _run(conn, number)
        return derived.make(conn) if revision == SCHEMA_REVISION else None


def grant_roles(url: str) -> str | None:
    """Make the roles and give them their rights on a migrated database; why not, if refused.

    Raises DatabaseUnavailable if the database can't be reached.
    """
    with _connected(url) as conn:
        conn.execute(derived.LOCK)
        return derived.grant(conn, settings.load().role_prefix)


def _run(conn: Conn, number: str) -> None:
    conn.execute(_STEPS[number].read_bytes())
    if number == BASE_REVISION:
        # Its random root gives the database an id.
        root, at = secrets.token_bytes(32), datetime.now(UTC)
        first = asdict(follow(None, kind=FIRST, job_id=None, root=root, at=at, format=1))
        del first["format"]  # a column since 0008
        db.insert(conn, "chain", [first])
    conn.execute("DELETE FROM alembic_version")
    conn.execute("INSERT INTO alembic_version VALUES (%s)", [number])


def _require_server(conn: Conn) -> None:
    version = conn.info.server_version // 10_000
    if version < OLDEST_POSTGRES:
        raise SchemaMismatch(f"Postgres {version} is too old: use {OLDEST_POSTGRES} or later")
    encoding = conn.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise SchemaMismatch(f"the database's encoding is {encoding}: {ENCODING}")


def _lock(conn: Conn) -> None:
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
def _connected(url: str) -> Iterator[Conn]:
    """A connection in a transaction, committed at the end.

    Raises InvalidSettings for an address that can't be read, DatabaseUnavailable.
    """
    try:
        # Prepared statements would outlive the transaction: a pooler gives them to others.
        with psycopg.connect(
            address.conninfo(url, "marco migrate"), prepare_threshold=None
        ) as conn:
            yield conn
    except psycopg.Error as error:
        refusal = _refusal(error, url)
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
        return DatabaseUnavailable(f"{address.shown(url)}: {_in_use(url)}")
    if isinstance(error, psycopg.OperationalError | errors.ReadOnlySqlTransaction):
        return db.unavailable(address.shown(url), error)
    return None


def _in_use(url: str) -> str:
    """Who works with the tables and views at the moment."""
    with psycopg.connect(address.conninfo(url, "marco migrate")) as conn:
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
