"""`python -m marco_search.migrations.check`: do the migrations lead to what the schema says?

Migrates a scratch database on the configured server, compares it with `marco_search.schema`, and
drops it. Exit code 1 and one line for each difference if there is any.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import psycopg
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from psycopg import Connection, sql

from marco_search import migrations, schema, settings
from marco_search.errors import MarcoError
from marco_search.locations import database_url
from marco_search.migrations import objects
from marco_search.store import address
from marco_search.store.db import SCHEMA_REVISION, unavailable


def differences(url: str) -> list[str]:
    """What differs between the migrations and the schema, on the server at `url`.

    Needs the right to create a database there; changes no other.
    """
    found = []
    if migrations.head() != SCHEMA_REVISION:
        found.append(
            f"SCHEMA_REVISION is {SCHEMA_REVISION}, the newest migration {migrations.head()}"
        )
    with scratch_database(url) as scratch:
        migrations.upgrade(scratch)
        with migrations.connected(scratch) as connection:
            context = MigrationContext.configure(connection, opts={"compare_server_default": True})
            found += [f"tables: {d}" for d in compare_metadata(context, schema.metadata)]
        with psycopg.connect(scratch) as conn:
            found += objects.differences(conn, settings.load().role_prefix)
            migrated = _constraints(conn)
        with scratch_database(url) as other, migrations.connected(other) as connection:
            schema.metadata.create_all(connection)
            connection.commit()
            with psycopg.connect(other) as conn:
                found += sorted({f"only one has {c}" for c in migrated ^ _constraints(conn)})
    return found


@contextmanager
def scratch_database(url: str, *, template: str | None = None) -> Iterator[str]:
    """The URL of a new database on the same server, dropped at the end.

    `template`: the URL of another one there, which nobody is connected to: copied.
    """
    name = f"marco_scratch_{uuid4().hex}"
    try:
        with psycopg.connect(url, autocommit=True) as conn:
            copied = urlsplit(template).path[1:] if template else "template1"
            create = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
            conn.execute(create.format(sql.Identifier(name), sql.Identifier(copied)))
    except psycopg.OperationalError as error:
        raise unavailable(address.shown(url), error) from error
    try:
        yield urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
    finally:
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


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


def main() -> int:
    """Print the differences; 0 if there are none."""
    try:
        found = differences(database_url(settings.load()))
    except MarcoError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
