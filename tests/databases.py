"""Databases of a test's own, and what differs between migrations and schema."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import psycopg
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


# As the schema has it; a type of an array is its element's with _ before it.
_COLUMNS = """
    SELECT c.relname || '.' || a.attname,
        regexp_replace(t.typname, '^_(.*)', '\\1[]') || CASE WHEN a.attnotnull THEN '' ELSE '?' END,
        coalesce(i.indisprimary, false),
        (SELECT min(confrelid::regclass::text) FROM pg_constraint
            WHERE contype = 'f' AND conparentid = 0 AND conrelid = c.oid AND attnum = ANY (conkey)),
        CASE WHEN a.attidentity <> '' THEN 'identity' ELSE pg_get_expr(d.adbin, d.adrelid) END
    FROM pg_class AS c
    JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    JOIN pg_type AS t ON t.oid = a.atttypid
    LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum
    LEFT JOIN pg_index AS i ON i.indrelid = c.oid AND i.indisprimary AND a.attnum = ANY (i.indkey)
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
        AND c.relname <> 'alembic_version'
"""


def differences(url: str) -> list[str]:
    """What differs between the migrations and the schema, on the server at `url`."""
    with scratch_database(url) as scratch:
        migrations.upgrade(scratch)
        with psycopg.connect(scratch) as conn:
            there = {name: facts for name, *facts in conn.execute(_COLUMNS)}
            found = derived.differences(conn, settings.load().role_prefix)
    described = {
        f"{table.name}.{c.name}": [c.kind, c.key, c.references, c.default]
        for table in schema.TABLES.values()
        for c in table
    }
    for name in sorted(there.keys() | described.keys()):
        wanted, has = described.get(name), there.get(name)
        if wanted != has:
            found.append(f"column {name}: {wanted}, in the database {has}")
    return found
