"""What Alembic runs around every migration.

One advisory lock for all of it, so that only one process migrates. Each migration waits
but a moment for the locks it needs: a queue behind a waiting ALTER TABLE stops every
worker, a failed migration is simply tried again.
"""

from __future__ import annotations

from typing import Any

import psycopg
from alembic import context
from sqlalchemy import Connection, text

from marco_search.store.models import Base
from migrations import derived

# Any number that nothing else in this database uses.
ADVISORY_LOCK = 0x6D6172636F


def _with_lock(connection: Connection) -> None:
    connection.execute(text("SET statement_timeout = '120s'"))
    connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": ADVISORY_LOCK})
    connection.execute(text("SET lock_timeout = '5s'"))
    connection.execute(text("SET statement_timeout = '600s'"))
    connection.commit()
    try:
        _migrate(connection)
    finally:
        connection.rollback()
        connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": ADVISORY_LOCK})
        connection.commit()


def _migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        transaction_per_migration=True,
        compare_server_default=True,
    )
    migration = context.get_context()
    if migration.get_current_revision() != context.get_revision_argument():
        derived.drop(_psycopg(connection))
        connection.commit()
    with context.begin_transaction():
        context.run_migrations()
    if migration.get_current_revision() == context.get_head_revision():
        context.config.attributes["refused"] = derived.make(_psycopg(connection))
        connection.commit()


def _psycopg(connection: Connection) -> psycopg.Connection[Any]:
    conn = connection.connection.driver_connection
    assert isinstance(conn, psycopg.Connection), "made by migrations.connected"
    return conn


_with_lock(context.config.attributes["connection"])
