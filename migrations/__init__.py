"""Brings a database to this version's schema.

`upgrade`, `current`, `head` and `grant_roles` need no alembic.ini and no working
directory: they work from an installed package. Several may start at once (every worker of a
rolling deploy); one migrates, the others wait and find nothing to do.
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
from marco_search.store import address
from marco_search.store.db import unavailable
from marco_search.store.failures import words

_WHO = "let DATABASE_URL name a member of the owner's role, or a superuser"

__all__ = ["current", "grant_roles", "head", "upgrade"]


def head() -> str:
    """The newest migration there is."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    assert revision is not None, "there is at least one migration"
    return revision


def current(url: str) -> str | None:
    """The migration that the database is at; None if it holds nothing of ours.

    Raises DatabaseUnavailable if it can't be reached.
    """
    with connected(url) as connection:
        return MigrationContext.configure(connection).get_current_revision()


def upgrade(url: str, revision: str = "head") -> str | None:
    """Run all migrations up to `revision` in one transaction: all is done or nothing.

    At the newest one views, partitions and roles are brought up to date too. Returns why the
    roles were left as they are, if this user may not make them; `grant_roles` does it later.
    Raises DatabaseUnavailable if the database can't be reached or is locked by others,
    SchemaMismatch if it is newer than this program or not in UTF-8, RightsMissing.
    """
    with connected(url) as connection:
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    refused: str | None = config.attributes.get("refused")
    return refused


def grant_roles(url: str) -> str | None:
    """Make the roles and give them their rights on a migrated database; why not, if refused.

    Raises DatabaseUnavailable if the database can't be reached.
    """
    with connected(url) as connection:
        conn = connection.connection.driver_connection
        assert isinstance(conn, psycopg.Connection)
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


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    """A SQLAlchemy connection to the database at `url`, closed at the end.

    Raises InvalidSettings for an address that can't be read, DatabaseUnavailable.
    """
    conninfo = address.conninfo(url, "marco migrate")

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
        return DatabaseUnavailable(f"{address.shown(url)}: {_in_use(url)}")
    if isinstance(error, psycopg.OperationalError | errors.ReadOnlySqlTransaction):
        return unavailable(address.shown(url), error)
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
