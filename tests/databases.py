"""Databases of a test's own, and what differs between migrations and schema."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import psycopg
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from psycopg import sql

from marco_search import migrations, schema, settings
from marco_search.migrations import derived


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
    with scratch_database(url) as scratch:
        migrations.upgrade(scratch)
        with migrations.connected(scratch) as connection:
            # Indexes are the migrations' alone.
            options = {
                "compare_server_default": True,
                "include_object": lambda _object, _name, kind, *_: kind in ("table", "column"),
            }
            context = MigrationContext.configure(connection, opts=options)
            found = [f"tables: {d}" for d in compare_metadata(context, schema.metadata)]
        with psycopg.connect(scratch) as conn:
            return found + derived.differences(conn, settings.load().role_prefix)
