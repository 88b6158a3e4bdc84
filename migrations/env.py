"""What Alembic runs around every migration: all of it in one transaction.

Either the database is brought to the revision asked for, with views, partitions and rights, or
it stays as it was, also if it is interrupted. Only one process migrates: it locks the
table that names the revision, which the owner may and no reader. Each statement waits but a
moment for the locks it needs: a queue behind a waiting ALTER TABLE stops every worker, a failed
migration is simply tried again. No setting outlives the transaction: a pooler would pass it on.
"""

from __future__ import annotations

from typing import Any

import psycopg
from alembic import context
from sqlalchemy import Connection

from marco_search.errors import SchemaMismatch
from marco_search.migrations import derived
from marco_search.store import failures
from marco_search.store.db import OLDEST_POSTGRES, not_migrated

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


def _migrate(connection: Connection) -> None:
    conn = connection.connection.driver_connection
    assert isinstance(conn, psycopg.Connection), "made by migrations.connected"
    _require_server(conn)
    _lock(conn)
    context.configure(connection=connection)
    migration = context.get_context()
    _require_known(migration.get_current_heads())
    if migration.get_current_revision() != context.get_revision_argument():
        derived.drop(conn)
    context.run_migrations()
    if migration.get_current_revision() == context.get_head_revision():
        context.config.attributes["refused"] = derived.make(conn)
    connection.commit()


def _require_server(conn: psycopg.Connection[Any]) -> None:
    version = conn.info.server_version // 10_000
    if version < OLDEST_POSTGRES:
        raise SchemaMismatch(f"Postgres {version} is too old: use {OLDEST_POSTGRES} or later")
    encoding = conn.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise SchemaMismatch(f"the database's encoding is {encoding}: {failures.ENCODING}")


def _lock(conn: psycopg.Connection[Any]) -> None:
    """Wait until nobody else migrates."""
    conn.rollback()
    conn.execute(_LIMITS)
    try:
        conn.execute(_VERSION_TABLE)
    except psycopg.errors.UniqueViolation:  # another process made it meanwhile
        conn.rollback()
        conn.execute(_LIMITS)
    conn.execute(derived.LOCK)
    conn.execute("SET LOCAL lock_timeout = '5s'")


def _require_known(revisions: tuple[str, ...]) -> None:
    """Nothing is done to a database that a later version migrated."""
    known = {script.revision for script in context.script.walk_revisions()}
    for revision in revisions:
        if revision not in known:
            raise not_migrated(revision)


_migrate(context.config.attributes["connection"])
