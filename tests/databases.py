"""Databases of a test's own, and what differs between migrations and schema."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import psycopg
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from psycopg import Connection, sql

from marco_search import migrations, schema, settings
from marco_search.migrations import objects


@contextmanager
def scratch_database(url: str, *, template: str | None = None) -> Iterator[str]:
    """The URL of a new database on the same server, dropped at the end.

    `template`: the URL of another one there, which nobody is connected to: copied.
    """
    name = sql.Identifier(f"marco_scratch_{uuid4().hex}")
    copied = sql.Identifier(urlsplit(template).path[1:] if template else "template1")
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(name, copied))
    try:
        yield urlunsplit(urlsplit(url)._replace(path=f"/{name.as_string()[1:-1]}"))
    finally:
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


def differences(url: str) -> list[str]:
    """What differs between the migrations and the schema, on the server at `url`."""
    with scratch_database(url) as migrated, scratch_database(url) as made:
        migrations.upgrade(migrated)
        with migrations.connected(migrated) as connection:
            context = MigrationContext.configure(connection, opts={"compare_server_default": True})
            found = [f"tables: {d}" for d in compare_metadata(context, schema.metadata)]
        with migrations.connected(made) as connection:
            schema.metadata.create_all(connection)
            connection.commit()
        with psycopg.connect(migrated) as conn, psycopg.connect(made) as other:
            found += objects.differences(conn, settings.load().role_prefix)
            found += sorted({f"only one has {c}" for c in _constraints(conn) ^ _constraints(other)})
    return found


def _constraints(conn: Connection) -> set[str]:
    """Constraints and indexes in full, which Alembic compares by name at most."""
    rows = conn.execute(
        "SELECT conrelid::regclass || ': ' || conname || ' ' || pg_get_constraintdef(oid)"
        " FROM pg_constraint WHERE connamespace = 'public'::regnamespace"
        " AND conrelid <> coalesce(to_regclass('alembic_version'), 0) AND conparentid = 0"
        " UNION ALL SELECT indexdef FROM pg_indexes"
        " WHERE schemaname = 'public' AND tablename <> 'alembic_version'"
    ).fetchall()
    return {row[0] for row in rows}
