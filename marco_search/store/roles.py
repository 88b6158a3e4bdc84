"""Who may do what: roles of the database, and row-level security.

    PREFIX_owner        owns everything; migrations and archiving run as a member of it
    PREFIX_app          producers, workers, console: adds to the trail, changes jobs, no more
    PREFIX_redactor     an app that may also replace the texts of jobs that have ended
    PREFIX_auditor      reads the views, of the tenants that `auditors` lists for its login
    PREFIX_auditor_all  reads the views, of all tenants, and what `marco verify` takes: all rows

None of them can log in. The operator of the server makes logins that are members of one,
or has MARCO_LOGINS make them.

An auditor's views are `security_invoker`, so it needs to be allowed to select from the
tables too; but it may not enter their schema, and so can't name them. (An auditor of all
tenants may: it sees every row anyway, and can verify with a login that changes nothing.)
Whose rows it sees hangs on `current_user`, which no client can set to a role it is not a
member of. No function that auditors may call runs with another's rights.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

import psycopg
from psycopg import errors, sql

from marco_search import schema
from marco_search.errors import InvalidSettings, RightsMissing
from marco_search.settings import Login, Settings
from marco_search.store import postgres, views
from marco_search.store.db import unavailable
from marco_search.store.postgres import words

ROLES = ("owner", "app", "redactor", "auditor", "auditor_all")
_SQL = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
_REDACTORS = ("salt", "redacted_at")
"""Columns of jobs that only a redaction changes."""
FUNCTIONS = ("refuse_change", "ensure_partitions", "make_partition")
_LINE_TEXTS = ("custom_id", "field", "reason")
_ALL = "SELECT, INSERT, UPDATE, DELETE"
_MAY = {
    "chain_lock": "UPDATE",  # the right to lock it
    "redactions": "SELECT",
    "tenants": _ALL,
    "batches": "SELECT, INSERT, UPDATE",
    "api_keys": "SELECT, INSERT, UPDATE",
    **dict.fromkeys(("webhooks", "webhook_deliveries", "files", "file_parts"), _ALL),
    "auditors": "",
}
"""What an app may do with whole tables; with others it may select and insert."""
_UNSEEN = ("chain_lock", "api_keys", "webhooks", "webhook_deliveries", "files", "file_parts")
"""By auditors."""

Right = tuple[str, str, str]
"""A role, what it may do, and to what: ("marco_app", "INSERT", "table public.nodes")."""


def name(prefix: str, role: str) -> str:
    """The name of one of ROLES. Raises InvalidSettings for a prefix that can't be used."""
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,39}", prefix):
        raise InvalidSettings(
            "MARCO_ROLE_PREFIX: must be 1 to 40 lower-case letters, digits and underscores, "
            "and not begin with a digit"
        )
    return f"{prefix}_{role}"


def statements(prefix: str) -> Iterator[str]:
    """SQL that makes the roles and gives each its rights; running it again changes nothing.

    To be run in one transaction, by a superuser, or by a member of the owner that may create
    roles or finds them made.
    """
    names = {role: name(prefix, role) for role in ROLES}
    tables = (*schema.TABLES, "alembic_version")
    yield _SQL.format(tables=", ".join(f"'{table}'" for table in tables), **names)
    # What an earlier version gave, or somebody else. None sees it gone before it has its own.
    things = [f"public.{table}" for table in tables]
    things += [f"{views.SCHEMA}.{view}" for view in views.CREATE]
    for on in (", ".join(things), f"SCHEMA public, {views.SCHEMA}"):
        yield f"REVOKE ALL ON {on} FROM {', '.join(names[role] for role in ROLES[1:])}"
    for (role, thing), given in groupby(rights(prefix), lambda right: (right[0], right[2])):
        kind, _, what = thing.partition(" ")
        allowed = ", ".join(right for _, right, _ in given)
        if kind == "column":
            what, _, column = what.rpartition(".")
            allowed = f"{allowed} ({column})"
        on = what if kind in ("table", "column") else f"{kind.upper()} {what}"
        yield f"GRANT {allowed} ON {on} TO {role}"
    for table in secured():
        yield f"ALTER TABLE public.{table} ENABLE ROW LEVEL SECURITY"
    for policy, table, rule in _policies(**names):
        yield f"DROP POLICY IF EXISTS {policy} ON public.{table}"
        yield f"CREATE POLICY {policy} ON public.{table} {rule}"


def rights(prefix: str) -> Iterator[Right]:
    """What the migrations grant to others than the owner; each object's rights in a row."""
    _, app, redactor, auditor, auditor_all = (name(prefix, role) for role in ROLES)
    for role in (app, auditor):
        yield role, "USAGE", f"schema {views.SCHEMA}"
        for view in views.CREATE:
            yield role, "SELECT", f"table {views.SCHEMA}.{view}"
    for role in (app, auditor_all):
        yield role, "USAGE", "schema public"
        yield role, "SELECT", "table public.alembic_version"
    yield app, "EXECUTE", "function public.ensure_partitions(ahead integer)"
    for table in schema.TABLES:
        for right in filter(None, _MAY.get(table, "SELECT, INSERT").split(", ")):
            yield app, right, f"table public.{table}"
        if table not in _UNSEEN:
            yield auditor, "SELECT", f"table public.{table}"
    for column in schema.JOBS.columns.values():
        if "request" not in column.leaves and column.name not in _REDACTORS:
            yield app, "UPDATE", f"column public.jobs.{column.name}"
    yield redactor, "INSERT", "table public.redactions"
    for table in ("jobs", *schema.insert_only()):
        for column_name in schema.redacted_columns(table):
            yield redactor, "UPDATE", f"column public.{table}.{column_name}"
    for column_name in _REDACTORS:
        yield redactor, "UPDATE", f"column public.jobs.{column_name}"
    yield redactor, "UPDATE", "column public.proofs.hashes"
    for column_name in _LINE_TEXTS:
        yield redactor, "UPDATE", f"column public.batch_lines.{column_name}"
    yield redactor, "UPDATE", "column public.dataset_samples.sample_id"


def secured() -> list[str]:
    """The tables with row-level security."""
    return [table for table in schema.TABLES if table != "chain_lock"]


def _policies(app: str, auditor: str, auditor_all: str, **_: str) -> Iterator[tuple[str, str, str]]:
    """Name, table and rule of each policy."""
    tenants = "(SELECT a.tenant FROM public.auditors AS a WHERE a.role_name = current_user)"
    visible = {
        "tenants": f"name = '' OR name IN {tenants}",
        "batch_lines": "EXISTS (SELECT FROM public.batches AS b WHERE b.id = batch_id)",
    }
    yield "all_texts", "vocabulary", f"FOR SELECT TO {auditor} USING (true)"
    yield "own_rows", "auditors", f"TO {auditor} USING (role_name = current_user)"
    for table in (table for table in secured() if table != "auditors"):
        yield "all_rows", table, f"TO {app} USING (true) WITH CHECK (true)"
        if table in _UNSEEN:
            continue
        yield "all_tenants", table, f"FOR SELECT TO {auditor_all} USING (true)"
        rule = visible.get(table)
        if rule is None and "tenant" in schema.TABLES[table].columns:
            rule = f"tenant IN {tenants}"
        elif rule is None and "job_id" in schema.TABLES[table].columns:
            # Those of the jobs that the policy of jobs shows.
            rule = f"EXISTS (SELECT FROM public.jobs AS j WHERE j.id = {table}.job_id)"
        if rule is not None:
            yield "own_tenants", table, f"FOR SELECT TO {auditor} USING ({rule})"


_MAINTENANCE = "postgres"  # the database that every server has
_SUPERUSERS_ONLY = "MARCO_LOGINS needs a DATABASE_URL of a superuser"


def make_logins(url: str, settings: Settings) -> None:
    """Make the database of `url`, the roles and the logins, as far as they are missing.

    Each login gets its password and becomes a member of its roles; running it again changes
    nothing. Raises DatabaseUnavailable, InvalidSettings for a role that does not exist,
    RightsMissing unless `url` names a superuser.
    """
    database = postgres.parameters(url).get("dbname", _MAINTENANCE)
    conninfo = postgres.conninfo(url, "marco migrate")
    names = {role: name(settings.role_prefix, role) for role in ROLES}
    try:
        with psycopg.connect(conninfo, dbname=_MAINTENANCE, autocommit=True) as conn:
            if not _is_there(conn, "pg_database", "datname", database):
                _run(conn, "CREATE DATABASE {}", database)
            for role in names.values():
                _make_role(conn, role, "NOLOGIN")
            _run(conn, "GRANT {} TO {}", names["auditor"], names["auditor_all"])
            _run(conn, "GRANT {} TO {}", names["app"], names["redactor"])
            # Who owns the database may make schemas in it.
            _run(conn, "ALTER DATABASE {} OWNER TO {}", database, names["owner"])
            for login, wanted in settings.logins.items():
                _make_role(conn, login, "LOGIN")
                _bring_up_to_date(conn, login, wanted)
    except errors.UndefinedObject as error:
        raise InvalidSettings(f"MARCO_LOGINS: {words(error)}") from error
    except errors.InsufficientPrivilege as error:
        raise RightsMissing(f"{words(error)}: {_SUPERUSERS_ONLY}") from error
    except psycopg.OperationalError as error:
        raise unavailable(postgres.shown(url), error) from error


def _bring_up_to_date(conn: psycopg.Connection[Any], login: str, wanted: Login) -> None:
    # As the server keeps it: the password itself is in no log of statements.
    secret = wanted.password.get_secret_value()
    kept = conn.pgconn.encrypt_password(secret.encode(), login.encode(), b"scram-sha-256").decode()
    statement = sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(login), kept)
    conn.execute(statement)
    for role in wanted.roles:
        _run(conn, "GRANT {} TO {}", role, login)


def _make_role(conn: psycopg.Connection[Any], role: str, kind: str) -> None:
    if not _is_there(conn, "pg_roles", "rolname", role):
        # Roles belong to the server: another database's migration may be making it.
        with suppress(errors.DuplicateObject, errors.UniqueViolation):
            _run(conn, f"CREATE ROLE {{}} {kind}", role)


def _is_there(conn: psycopg.Connection[Any], table: str, column: str, value: str) -> bool:
    query = sql.SQL("SELECT FROM {} WHERE {} = %s").format(*map(sql.Identifier, (table, column)))
    return conn.execute(query, [value]).fetchone() is not None


def _run(conn: psycopg.Connection[Any], statement: str, *names: str) -> None:
    conn.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))
