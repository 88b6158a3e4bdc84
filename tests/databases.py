"""Databases of a test's own, and what differs between migrations and schema."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import psycopg
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from psycopg import sql
from sqlalchemy.dialects.postgresql import JSONB

from marco_search import migrations, schema, settings
from marco_search.migrations import derived

_TYPES: dict[str, Any] = {
    "bool": sa.Boolean(),
    "int2": sa.SmallInteger(),
    "int4": sa.Integer(),
    "int8": sa.BigInteger(),
    "float4": sa.REAL(),
    "float8": sa.Double(),
    "text": sa.Text(),
    "bytea": sa.LargeBinary(),
    "jsonb": JSONB(),
    "uuid": sa.Uuid(),
    "timestamptz": sa.DateTime(timezone=True),
}


@contextmanager
def scratch_database(url: str, *, template: str | None = None) -> Iterator[str]:
    """The URL of a new database on the same server, dropped at the end.

    `template`: the URL of another one there, which nobody is connected to: copied.
    """
    name = sql.Identifier(f"marco_scratch_{uuid4().hex}")
    copied = sql.Identifier(urlsplit(template).path[1:] if template else "template1")
    with psycopg.connect(url, autocommit=True) as conn:
        # Nothing is flushed in tests: copying files takes half the time of copying through the log.
        create = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy")
        conn.execute(create.format(name, copied))
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
            found = [f"tables: {d}" for d in compare_metadata(context, _metadata())]
        with psycopg.connect(scratch) as conn:
            return found + derived.differences(conn, settings.load().role_prefix)


def _metadata() -> sa.MetaData:
    """The schema as Alembic compares it with a database."""
    metadata = sa.MetaData()
    for table in schema.TABLES.values():
        columns = [_column(column) for column in table.columns.values()]
        sa.Table(table.name, metadata, *columns, comment=table.comment)
    return metadata


def _column(column: schema.Column) -> sa.Column[object]:
    base = column.type.removesuffix("[]")
    identity = column.default == schema.IDENTITY
    return sa.Column(
        column.name,
        _TYPES[base] if base == column.type else sa.ARRAY(_TYPES[base]),
        *([sa.Identity(always=True)] if identity else []),
        primary_key=column.key,
        nullable=column.kind.endswith("?"),
        server_default=None if identity or column.default is None else sa.text(column.default),
        comment=column.comment,
        autoincrement="auto" if identity else False,
    )
