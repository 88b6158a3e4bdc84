"""What follows from the code and is no migration's: comments, views, functions, partitions, roles.

Recreated at the end of an upgrade if its SQL changed, or the objects in the database did: a view
or a comment needs no migration. Nothing here holds data. The
schema of the views remembers what it was made from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.sql import Literal

from marco_search import schema, settings
from marco_search.migrations import objects
from marco_search.store import roles, views
from marco_search.store.trail import partitions

LOCK = "LOCK TABLE public.alembic_version IN SHARE ROW EXCLUSIVE MODE"
"""Held while migrating or giving rights. Only the owner may; readers neither can nor wait."""


def drop(conn: Connection[Any]) -> None:
    """Remove what would stand in the way of a migration: views, and policies with columns.

    The app's policies stay: it goes on working.
    """
    conn.execute(f"DROP SCHEMA IF EXISTS {views.SCHEMA} CASCADE")
    for table in roles.secured():
        conn.execute(f"DROP POLICY IF EXISTS own_tenants ON public.{table}")


def make(conn: Connection[Any]) -> str | None:
    """Make what is missing or has changed; why the roles could not be made, None if they were.

    In the caller's transaction.
    """
    prefix = settings.load().role_prefix
    made = [*_comments(), objects.FUNCTIONS, f"CREATE SCHEMA {views.SCHEMA}", views.SQL]
    digest = hashlib.sha256("\0".join([*made, *roles.statements(prefix)]).encode()).hexdigest()[:16]
    if _made_from(conn) == digest and not _differs(conn, prefix):
        partitions.ensure(conn)
        return None
    drop(conn)
    for statement in made:
        conn.execute(statement.encode())
    partitions.ensure(conn)
    refused = grant(conn, prefix)
    if refused is None:
        comment = f"Views for auditors: the public SQL interface ({digest})"
        conn.execute(f"COMMENT ON SCHEMA {views.SCHEMA} IS '{comment}'")
    return refused


def grant(conn: Connection[Any], prefix: str) -> str | None:
    """Make the roles and give them their rights, or nothing of it and the reason."""
    try:
        with conn.transaction():
            for statement in roles.statements(prefix):
                conn.execute(statement)
    except psycopg.errors.InsufficientPrivilege as error:
        return str(error.diag.message_primary or error)
    return None


def _comments() -> Iterator[str]:
    for table in schema.TABLES.values():
        yield _comment(f"TABLE public.{table.name}", table.comment)
        for column in table:
            yield _comment(f"COLUMN public.{table.name}.{column.name}", column.comment)


def _comment(on: str, text: str) -> str:
    return f"COMMENT ON {on} IS " + Literal(text).as_string()


def _differs(conn: Connection[Any], prefix: str) -> bool:
    try:
        return bool(objects.differences(conn, prefix))
    except psycopg.errors.InsufficientPrivilege:  # it takes temporary objects
        return True


def _made_from(conn: Connection[Any]) -> str | None:
    """The digest that the views' schema remembers."""
    row = conn.execute(
        "SELECT substring(obj_description(to_regnamespace(%s), 'pg_namespace') from '\\((.*)\\)')",
        [views.SCHEMA],
    ).fetchone()
    return row[0] if row else None
