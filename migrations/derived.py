"""What follows from the code and is no migration's: comments, views, functions, partitions, roles.

Recreated at the end of an upgrade if its SQL changed, or the objects in the database did: a view
or a comment needs no migration. Nothing here holds data. The
schema of the views remembers what it was made from.

A change of a trigger, function, view, policy or right changes what the trail is worth, and no row
shows it. What should be there is made from the code as temporary objects, in a transaction that
is rolled back, so that Postgres itself describes both (`differences`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from psycopg import Connection, errors
from psycopg.sql import Literal

from marco_search import schema, settings
from marco_search.store import roles, views
from marco_search.store.trail import partitions

LOCK = "LOCK TABLE public.alembic_version IN SHARE ROW EXCLUSIVE MODE"
"""Held while migrating or giving rights. Only the owner may; readers neither can nor wait."""
_FOLDER = Path(__file__).parent
FUNCTIONS = (_FOLDER / "functions.sql").read_text()
_RELATIONS = """pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    AND c.relkind IN ('r', 'p', 'v') AND (
        n.nspname IN ('audit', 'partitions')
        OR n.nspname = 'public' AND c.relname = ANY (%(tables)s)
    )"""
_QUERIES = dict(
    re.findall(
        r"^-- (\w+)[^\n]*\n(SELECT .*?);\n",
        (_FOLDER / "catalog.sql").read_text().replace("{relations}", _RELATIONS),
        re.MULTILINE | re.DOTALL,
    )
)

Facts = dict[str, Any]
"""What an object is called, and all that must be the same about it."""


def drop(conn: Connection[Any]) -> None:
    """Remove what would stand in the way of a migration: views, and policies with columns.

    The app's policies stay, so that it keeps working.
    """
    conn.execute(f"DROP SCHEMA IF EXISTS {views.SCHEMA} CASCADE")
    for table in roles.secured():
        conn.execute(f"DROP POLICY IF EXISTS own_tenants ON public.{table}")


def make(conn: Connection[Any]) -> str | None:
    """Make what is missing or has changed; why the roles could not be made, None if they were.

    In the caller's transaction.
    """
    prefix = settings.load().role_prefix
    made = [*_comments(), FUNCTIONS, f"CREATE SCHEMA {views.SCHEMA}", views.SQL]
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
    except errors.InsufficientPrivilege as error:
        return str(error.diag.message_primary or error)
    return None


def _comments() -> Iterator[str]:
    for table in schema.TABLES.values():
        yield _comment(f"TABLE public.{table.name}", table.comment)
        for column in table.columns.values():
            yield _comment(f"COLUMN public.{table.name}.{column.name}", column.comment)


def _comment(on: str, text: str) -> str:
    return f"COMMENT ON {on} IS " + Literal(text).as_string()


def _differs(conn: Connection[Any], prefix: str) -> bool:
    try:
        return bool(differences(conn, prefix))
    except errors.InsufficientPrivilege:  # it takes temporary objects
        return True


def _made_from(conn: Connection[Any]) -> str | None:
    """The digest that the views' schema remembers."""
    row = conn.execute(
        "SELECT substring(obj_description(to_regnamespace(%s), 'pg_namespace') from '\\((.*)\\)')",
        [views.SCHEMA],
    ).fetchone()
    return row[0] if row else None


class Catalog:
    """Asks the queries of catalog.sql about our objects."""

    def __init__(self, conn: Connection[Any], prefix: str) -> None:
        self.conn = conn
        self.roles = [roles.name(prefix, role) for role in roles.ROLES]
        self._values = {
            "tables": [*schema.TABLES, "alembic_version"],
            "schemas": ["public", views.SCHEMA, partitions.SCHEMA],
            "functions": list(roles.FUNCTIONS),
            "guarded": schema.insert_only(),
            "roles": self.roles,
            "owner": roles.name(prefix, "owner"),
        }

    def rows(self, query: str, *, made: bool = False) -> list[tuple[Any, ...]]:
        """The rows of a query; `made`: of temporary objects."""
        values = self._values | {"made": made}
        return self.conn.execute(_QUERIES[query].encode(), values).fetchall()

    def facts(self, query: str, *, made: bool = False) -> Facts:
        """The rows by their first column."""
        return {row[0]: row[1:] for row in self.rows(query, made=made)}


def differences(conn: Connection[Any], prefix: str) -> list[str]:
    """One line for each object that is missing, changed, or not the migrations'.

    Changes nothing. Without the right to make temporary objects raises psycopg's
    InsufficientPrivilege. The database must be at the newest migration.
    """
    catalog = Catalog(conn, prefix)
    with conn.transaction(force_rollback=True):
        conn.execute("SET LOCAL search_path = pg_catalog, pg_temp")
        found = [*_triggers(catalog), *_functions(catalog), *_views(catalog)]
        if catalog.rows("missing_roles"):
            return [*found, f"the roles {prefix}_owner, {prefix}_app, ... are not made"]
        return [*found, *_policies(catalog, prefix), *_rights(catalog, prefix)]


def _compared(kind: str, wanted: Facts, there: Facts) -> Iterator[str]:
    for name in sorted(wanted.keys() | there.keys()):
        if name not in there:
            yield f"{kind} {name}: missing"
        elif name not in wanted:
            yield f"{kind} {name}: not made by the migrations"
        elif wanted[name] != there[name]:
            yield f"{kind} {name}: changed"


def _triggers(catalog: Catalog) -> Iterator[str]:
    """The triggers, and what switches them off or does something else in their place."""
    wanted = {
        f"insert_only of {table}": (
            f"CREATE TRIGGER insert_only BEFORE DELETE OR UPDATE OR TRUNCATE ON {table}"
            " FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change()",
        )
        for (table,) in catalog.rows("guarded")
    }
    yield from _compared("trigger", wanted, catalog.facts("triggers"))
    for (name,) in catalog.rows("disabled"):
        yield f"{name}: disabled"
    for (table,) in catalog.rows("rules"):
        yield f"rule of {table}: not made by the migrations"
    for (who,) in catalog.rows("replica"):
        yield f"session_replication_role of {who}: set, triggers may not fire"


def _functions(catalog: Catalog) -> Iterator[str]:
    for statement in re.findall(r"CREATE .*?\$\$.*?\$\$;", FUNCTIONS, re.DOTALL):
        made = statement.replace("FUNCTION public.", "FUNCTION pg_temp.", 1)
        catalog.conn.execute(made.encode())
    yield from _compared(
        "function", catalog.facts("functions", made=True), catalog.facts("functions")
    )


def _views(catalog: Catalog) -> Iterator[str]:
    there = catalog.facts("views")
    with catalog.conn.transaction(force_rollback=True):
        for create in views.CREATE.values():
            try:
                with catalog.conn.transaction():
                    catalog.conn.execute(create.replace(" audit.", " pg_temp.", 1).encode())
            except (errors.UndefinedTable, errors.UndefinedColumn, errors.InvalidSchemaName):
                pass  # what it reads is missing or changed, and named itself
        wanted = catalog.facts("views", made=True)
    unmade: Facts = {name: there.get(name) for name in views.CREATE if name not in wanted}
    yield from _compared("view", unmade | wanted, there)


def _policies(catalog: Catalog, prefix: str) -> Iterator[str]:
    secured = roles.secured()
    with catalog.conn.transaction(force_rollback=True):
        for table, columns in catalog.rows("columns"):
            if table in secured:
                catalog.conn.execute(f"CREATE TEMP TABLE {table} ({columns})".encode())
        for statement in roles.statements(prefix):
            if statement.startswith("CREATE POLICY"):
                made = statement.replace(" ON public.", " ON pg_temp.", 1)
                catalog.conn.execute(made.encode())
        wanted = catalog.facts("policies", made=True)
        there = catalog.facts("policies")
    yield from _compared("policy", wanted, there)
    for table, on in catalog.rows("security"):
        if on != (table in secured):
            yield f"row-level security of {table}: {'on' if on else 'off'}"


def _rights(catalog: Catalog, prefix: str) -> Iterator[str]:
    """Rights and owners; our roles and their members have no power beside these."""
    owner, app, redactor, auditor, auditor_all = catalog.roles
    there: set[roles.Right] = set()
    for name, who, right, holder in catalog.rows("rights"):
        # Others may read what a database's holder lets them.
        if who != holder and (
            who in (*catalog.roles, "PUBLIC") or right not in ("SELECT", "USAGE")
        ):
            there.add((who, right, name))
        elif who == holder != owner and name != "schema public":
            yield f"{name}: belongs to {holder}"
    # Nobody can call a trigger's function.
    there -= {("PUBLIC", "EXECUTE", "function public.refuse_change()")}
    wanted = set(roles.rights(prefix))
    for who, right, thing in sorted(wanted - there):
        yield f"right {right} of {who} on {thing}: missing"
    for who, right, thing in sorted(there - wanted):
        if who != owner:
            yield f"right {right} of {who} on {thing}: not given by the migrations"
    for (name,) in catalog.rows("superusers"):
        yield f"role {name}: has attributes of a superuser"
    for member, group in catalog.rows("memberships"):
        if (member, group) not in ((auditor_all, auditor), (redactor, app)):
            yield f"role {member}: is a member of {group}"
