"""What differs between a database and what the migrations make, beside tables and columns.

Triggers, functions, views, policies and rights: a change of one of them changes what the
trail is worth, and no row shows it. What should be there is made from the code as temporary
objects, in a transaction that is rolled back, so that Postgres itself describes both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from psycopg import Connection, errors

from marco_search import schema
from marco_search.store import roles, views
from marco_search.store.trail import partitions

FUNCTIONS = (Path(__file__).parent / "functions.sql").read_text()
_ALL = {
    "tables": [*schema.metadata.tables, "alembic_version"],
    "schemas": ["public", views.SCHEMA, partitions.SCHEMA],
    "functions": list(roles.FUNCTIONS),
    "guarded": schema.insert_only(),
}
# Our tables and views and all partitions, as `c` in `n`.
_RELATIONS = """
    pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    AND c.relkind IN ('r', 'p', 'v') AND (
        n.nspname IN ('audit', 'partitions')
        OR n.nspname = 'public' AND c.relname = ANY (%(tables)s)
    )
"""

Facts = dict[str, Any]
"""What an object is called, and all that must be the same about it."""


def differences(conn: Connection[Any], prefix: str) -> list[str]:
    """One line for each object that is missing, changed, or not the migrations'.

    Changes nothing. Without the right to make temporary objects raises psycopg's
    InsufficientPrivilege. The database must be at the newest migration.
    """
    with conn.transaction(force_rollback=True):
        conn.execute("SET LOCAL search_path = pg_catalog, pg_temp")
        found = [*_triggers(conn), *_functions(conn), *_views(conn), *_settings(conn)]
        if not all(_has_role(conn, roles.name(prefix, role)) for role in roles.ROLES):
            return [*found, f"the roles {prefix}_owner, {prefix}_app, ... are not made"]
        return [*found, *_policies(conn, prefix), *_rights(conn, prefix)]


def _compared(kind: str, wanted: Facts, there: Facts) -> Iterator[str]:
    for name in sorted(wanted.keys() | there.keys()):
        if name not in there:
            yield f"{kind} {name}: missing"
        elif name not in wanted:
            yield f"{kind} {name}: not made by the migrations"
        elif wanted[name] != there[name]:
            yield f"{kind} {name}: changed"


def _facts(conn: Connection[Any], query: str) -> Facts:
    rows = conn.execute(query.encode(), _ALL).fetchall()
    return {row[0]: row[1:] for row in rows}


def _triggers(conn: Connection[Any]) -> Iterator[str]:
    there = _facts(conn, _TRIGGERS)
    wanted = {
        f"insert_only of {table}": (
            f"CREATE TRIGGER insert_only BEFORE DELETE OR UPDATE OR TRUNCATE ON {table}"
            " FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change()",
        )
        for table in _facts(conn, _GUARDED)
    }
    yield from _compared("trigger", wanted, there)
    for name in _facts(conn, _DISABLED):
        yield f"{name}: disabled"


_TRIGGERS = f"""
    SELECT tgname || ' of ' || tgrelid::regclass, pg_get_triggerdef(t.oid)
    FROM pg_trigger AS t JOIN {_RELATIONS} ON c.oid = t.tgrelid WHERE NOT tgisinternal
"""  # noqa: S608
# Insert-only tables and all their partitions.
_GUARDED = f"""
    SELECT c.oid::regclass::text FROM {_RELATIONS} LEFT JOIN pg_inherits AS i ON i.inhrelid = c.oid
    WHERE c.relkind IN ('r', 'p')
        AND (SELECT relname FROM pg_class WHERE oid = coalesce(inhparent, c.oid))
            = ANY (%(guarded)s)
"""  # noqa: S608
_DISABLED = f"""
    SELECT DISTINCT CASE WHEN tgisinternal THEN 'foreign keys' ELSE 'trigger ' || tgname END
        || ' of ' || c.oid::regclass AS name
    FROM pg_trigger AS t JOIN {_RELATIONS} ON c.oid = t.tgrelid
    WHERE tgenabled NOT IN ('O', 'A') ORDER BY name
"""  # noqa: S608


def _functions(conn: Connection[Any]) -> Iterator[str]:
    for statement in re.findall(r"CREATE .*?\$\$.*?\$\$;", FUNCTIONS, re.DOTALL):
        conn.execute(statement.replace("FUNCTION public.", "FUNCTION pg_temp.", 1).encode())
    query = (
        "SELECT proname || '(' || pg_get_function_identity_arguments(oid) || ')', btrim(prosrc,"
        " E' \\n'), prosecdef, proconfig, prorettype, prolang, provolatile FROM pg_proc"
        " WHERE {}"
    )
    ours = (
        "pronamespace = 'public'::regnamespace AND proname = ANY (%(functions)s)"
        " OR pronamespace::regnamespace::text IN ('audit', 'partitions')"
    )
    yield from _compared(
        "function",
        _facts(conn, query.format("pronamespace = pg_my_temp_schema()")),
        _facts(conn, query.format(ours)),
    )


def _views(conn: Connection[Any]) -> Iterator[str]:
    query = (
        "SELECT relname, relkind, pg_get_viewdef(oid), reloptions FROM pg_class"
        " WHERE relkind <> 'i' AND relnamespace = {}"
    )
    there = _facts(conn, query.format(f"to_regnamespace('{views.SCHEMA}')"))
    with conn.transaction(force_rollback=True):
        for view in views.VIEWS:
            create = next(view.statements()).replace(f" {views.SCHEMA}.", " pg_temp.", 1)
            try:
                with conn.transaction():
                    conn.execute(create.encode())
            except (errors.UndefinedTable, errors.UndefinedColumn, errors.InvalidSchemaName):
                pass  # what it reads is missing or changed, and named itself
        wanted = _facts(conn, query.format("pg_my_temp_schema()"))
    unmade: Facts = {v.name: there.get(v.name) for v in views.VIEWS if v.name not in wanted}
    yield from _compared("view", unmade | wanted, there)


def _settings(conn: Connection[Any]) -> Iterator[str]:
    """What switches triggers off or does something else in their place."""
    for table in _facts(conn, _RULES):
        yield f"rule of {table}: not made by the migrations"
    for who in _facts(conn, _REPLICA):
        yield f"session_replication_role of {who}: set, triggers may not fire"


_RULES = f"""
    SELECT c.oid::regclass::text FROM pg_rewrite JOIN {_RELATIONS} ON c.oid = ev_class
    WHERE rulename <> '_RETURN' ORDER BY 1
"""  # noqa: S608
_REPLICA = """
    SELECT coalesce(rolname, 'everybody') FROM pg_db_role_setting
    LEFT JOIN pg_roles AS r ON r.oid = setrole WHERE setdatabase IN
        (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
    AND array_to_string(setconfig, ',') LIKE '%%session_replication_role=%%'
"""


def _has_role(conn: Connection[Any], name: str) -> bool:
    return conn.execute("SELECT to_regrole(%s) IS NOT NULL", [name]).fetchone() == (True,)


def _policies(conn: Connection[Any], prefix: str) -> Iterator[str]:
    made = [s for s in roles.statements(prefix) if s.startswith("CREATE POLICY")]
    secured = roles.secured()
    with conn.transaction(force_rollback=True):
        for table, columns in _facts(conn, _COLUMNS).items():
            if table in secured:
                conn.execute(f"CREATE TEMP TABLE {table} ({columns[0]})".encode())
        for statement in made:
            conn.execute(statement.replace(" ON public.", " ON pg_temp.", 1).encode())
        query = (
            "SELECT policyname || ' of ' || tablename, permissive, roles, cmd, qual, with_check"
            " FROM pg_policies WHERE tablename = ANY (%(tables)s)"
            " AND schemaname::regnamespace = {}"
        )
        wanted = _facts(conn, query.format("pg_my_temp_schema()"))
        there = _facts(conn, query.format("'public'::regnamespace"))
    yield from _compared("policy", wanted, there)
    for table, on in conn.execute(
        "SELECT relname, relrowsecurity FROM pg_class WHERE relname = ANY (%(tables)s)"
        " AND relnamespace = 'public'::regnamespace ORDER BY relname",
        _ALL,
    ):
        if on != (table in secured):
            yield f"row-level security of {table}: {'on' if on else 'off'}"


# Not by LIKE, which takes the right to read the table.
_COLUMNS = """
    SELECT c.relname, string_agg(format('%%I %%s', attname, format_type(atttypid, atttypmod)), ', ')
    FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
    WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY (%(tables)s)
        AND attnum > 0 AND NOT attisdropped
    GROUP BY c.relname
"""


def _rights(conn: Connection[Any], prefix: str) -> Iterator[str]:
    owner = roles.name(prefix, "owner")
    ours = {roles.name(prefix, role) for role in roles.ROLES}
    there: set[roles.Right] = set()
    for name, who, right, holder in conn.execute(_ACLS.encode(), _ALL):
        # Others may read what a database's holder lets them.
        if who != holder and (who in ours | {"PUBLIC"} or right not in ("SELECT", "USAGE")):
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
    yield from _roles(conn, sorted(ours), prefix)


_ACLS = f"""
    SELECT things.name, CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(x.grantee) END,
        x.privilege_type || CASE WHEN x.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END,
        pg_get_userbyid(things.owner)
    FROM (
        SELECT 'table ' || n.nspname || '.' || c.relname, c.relowner,
            coalesce(c.relacl, acldefault('r', c.relowner)) FROM {_RELATIONS}
        UNION ALL SELECT 'column ' || n.nspname || '.' || c.relname || '.' || attname, c.relowner,
            attacl FROM {_RELATIONS} JOIN pg_attribute AS a ON a.attrelid = c.oid
            AND attacl IS NOT NULL AND NOT attisdropped
        UNION ALL SELECT 'schema ' || nspname, nspowner,
            coalesce(nspacl, acldefault('n', nspowner)) FROM pg_namespace
            WHERE nspname = ANY (%(schemas)s)
        UNION ALL SELECT 'function public.' || proname || '('
            || pg_get_function_identity_arguments(oid) || ')', proowner,
            coalesce(proacl, acldefault('f', proowner)) FROM pg_proc
            WHERE pronamespace = 'public'::regnamespace AND proname = ANY (%(functions)s)
    ) AS things (name, owner, acl) CROSS JOIN LATERAL aclexplode(things.acl) AS x
"""  # noqa: S608


def _roles(conn: Connection[Any], ours: list[str], prefix: str) -> Iterator[str]:
    """Our roles and their members have no power of their own; ours are members of no other."""
    for (name,) in conn.execute(
        "SELECT rolname FROM pg_roles WHERE (rolsuper OR rolcreaterole"
        " OR rolbypassrls OR rolreplication) AND (rolname = ANY (%(ours)s) OR oid IN"
        " (SELECT member FROM pg_auth_members WHERE pg_get_userbyid(roleid) = ANY (%(others)s)))"
        " ORDER BY rolname",
        {"ours": ours, "others": [name for name in ours if name != roles.name(prefix, "owner")]},
    ):
        yield f"role {name}: has attributes of a superuser"
    allowed = (roles.name(prefix, "auditor_all"), roles.name(prefix, "auditor"))
    for pair in conn.execute(
        "SELECT pg_get_userbyid(member), pg_get_userbyid(roleid) FROM pg_auth_members"
        " WHERE pg_get_userbyid(member) = ANY (%s) ORDER BY 1, 2",
        [ours],
    ):
        if pair != allowed:
            yield f"role {pair[0]}: is a member of {pair[1]}"
