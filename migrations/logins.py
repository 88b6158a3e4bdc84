"""The logins of MARCO_LOGINS: made, or brought to the password that the settings say."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import psycopg
from psycopg import errors, sql

from marco_search.errors import InvalidSettings, RightsMissing
from marco_search.settings import Login, Settings
from marco_search.store import address
from marco_search.store.db import unavailable
from marco_search.store.failures import words
from marco_search.store.roles import ROLES, name

_MAINTENANCE = "postgres"  # the database that every server has
_SUPERUSERS_ONLY = "MARCO_LOGINS needs a DATABASE_URL of a superuser"


def make_logins(url: str, settings: Settings) -> None:
    """Make the database of `url`, the roles and the logins, as far as they are missing.

    Each login gets its password and becomes a member of its roles; running it again changes
    nothing. Raises DatabaseUnavailable, InvalidSettings for a role that does not exist,
    RightsMissing unless `url` names a superuser.
    """
    database = address.parameters(url).get("dbname", _MAINTENANCE)
    conninfo = address.conninfo(url, "marco migrate")
    names = {role: name(settings.role_prefix, role) for role in ROLES}
    try:
        with psycopg.connect(conninfo, dbname=_MAINTENANCE, autocommit=True) as conn:
            if not _exists(conn, "pg_database", "datname", database):
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
        raise unavailable(address.shown(url), error) from error


def _bring_up_to_date(conn: psycopg.Connection[Any], login: str, wanted: Login) -> None:
    # As the server keeps it: the password itself is in no log of statements.
    secret = wanted.password.get_secret_value()
    kept = conn.pgconn.encrypt_password(secret.encode(), login.encode(), b"scram-sha-256").decode()
    statement = sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(login), kept)
    conn.execute(statement)
    for role in wanted.roles:
        _run(conn, "GRANT {} TO {}", role, login)


def _make_role(conn: psycopg.Connection[Any], role: str, kind: str) -> None:
    if not _exists(conn, "pg_roles", "rolname", role):
        # Roles belong to the server: another database's migration may be making it.
        with suppress(errors.DuplicateObject, errors.UniqueViolation):
            _run(conn, f"CREATE ROLE {{}} {kind}", role)


def _exists(conn: psycopg.Connection[Any], table: str, column: str, value: str) -> bool:
    query = sql.SQL("SELECT FROM {} WHERE {} = %s").format(*map(sql.Identifier, (table, column)))
    return conn.execute(query, [value]).fetchone() is not None


def _run(conn: psycopg.Connection[Any], statement: str, *names: str) -> None:
    conn.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))
