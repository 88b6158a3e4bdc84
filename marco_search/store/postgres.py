"""The address of a Postgres, read, checked, shown without its password; and what its errors mean.

libpq quotes parts of an address that it can't parse, which may contain a password with an
unescaped character: its messages about an address are never passed on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from marco_search.errors import InvalidSettings
from marco_search.settings import is_host

CONNECT_TIMEOUT_S = 5
# A machine that is gone is noticed in some ten seconds: packets that nobody acknowledges for so
# long (milliseconds); after 5 s of silence three questions, 2 s apart.
_KEEPALIVE = {
    "tcp_user_timeout": "8000",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
}
_FORM = (
    "DATABASE_URL: not a valid Postgres URL; write postgresql://user:password@host:port/database, "
    "with @ : / ? # [ ] and % in the password percent-encoded (@ is %40)"
)


def parameters(url: str) -> dict[str, str]:
    """The connection parameters in `url`, by libpq's names.

    Raises InvalidSettings, which repeats nothing of it, if it can't be read, or if it reads as
    an address only because a character of the password was not escaped.
    """
    try:
        given = {name: str(value) for name, value in conninfo_to_dict(url).items()}
    except (psycopg.Error, UnicodeError):
        raise InvalidSettings(_FORM) from None
    path = url.partition("://")[2].partition("?")[0].partition("/")[2]
    ports = given.get("port", "").split(",")
    names = given.get("host", "").split(",")
    if "@" in given.get("host", "") + path or any(map(_no_port, ports)):
        raise InvalidSettings(_FORM)
    # The one option that psycopg reads itself: its error is no connection error.
    if not re.fullmatch(r"[+-]?[0-9]{1,9}", given.get("connect_timeout", "0").strip()):
        raise InvalidSettings("DATABASE_URL: connect_timeout must be a whole number of seconds")
    if not all(name.startswith("/") or is_host(name) for name in names):
        raise InvalidSettings(_FORM)
    return given


def _no_port(text: str) -> bool:
    return bool(text) and not (text.isdecimal() and 0 < int(text) < 2**16)


def conninfo(url: str, application: str, *, writes: bool = True) -> str:
    """What psycopg connects with; pg_stat_activity shows `application`.

    `writes`: of several hosts one that can be written to is taken, unless the address says
    otherwise. Raises InvalidSettings like `parameters`.
    """
    given = parameters(url)
    defaults = {
        "application_name": application,
        "connect_timeout": str(CONNECT_TIMEOUT_S),
        **_KEEPALIVE,
    }
    if writes and "," in given.get("host", "") + given.get("hostaddr", ""):
        defaults["target_session_attrs"] = "read-write"
    # Whatever PGCLIENTENCODING says: texts are stored as they are.
    return make_conninfo(**(defaults | given | {"client_encoding": "UTF8"}))


def shown(url: str) -> str:
    """`url` as it may be printed and logged: user, hosts, ports and database, nothing else."""
    try:
        given = parameters(url)
    except InvalidSettings:
        return "postgresql://***"
    where = ",".join(_host(host, port) for host, port in hosts(given))
    user = given.get("user", "")
    who = f"{user}{':***' if 'password' in given else ''}@" if user else ""
    return f"postgresql://{who}{where}/{given.get('dbname', '')}"


def hosts(given: Mapping[str, str]) -> list[tuple[str, str]]:
    """(host, port) of each server that connection parameters name; "" for what they leave out."""
    names = given.get("host", given.get("hostaddr", "")).split(",")
    ports = given.get("port", "").split(",")
    ports += ports[-1:] * (len(names) - len(ports))  # one port is that of all hosts
    return list(zip(names, ports, strict=False))


def _host(host: str, port: str) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"{name}:{port}" if port else name


READ_ONLY = (
    "this server can only be read (a standby?): let DATABASE_URL name the primary, or all hosts: "
    "host1,host2/database?target_session_attrs=read-write"
)
FULL = (
    "no connection is free: raise the server's max_connections, or run fewer processes (each "
    "process of a worker takes 2)"
)
ENCODING = (
    "texts of every language must fit: create the database again with "
    "CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0"
)
_LOGIN = "check the user and the password in DATABASE_URL"
_MOMENT = "the server is starting or stopping: try again in a moment"
_UNREACHABLE = "see that Postgres runs and DATABASE_URL is right (marco doctor)"

# By SQLSTATE. Others are self-explanatory.
_MEANINGS: dict[type[psycopg.Error], str] = {
    errors.QueryCanceled: "a statement ran into its time limit or was cancelled: the server is "
    "overloaded, or another session holds a lock (see pg_stat_activity)",
    errors.LockNotAvailable: "another session holds a lock for too long (see pg_locks): try again",
    errors.DeadlockDetected: "two transactions waited for each other: try again",
    errors.SerializationFailure: "another transaction changed the same rows: try again",
    errors.DiskFull: "the database server's disk is full: free some space there",
    errors.OutOfMemory: "the database server is out of memory",
    errors.TooManyConnections: FULL,
    errors.AdminShutdown: "the server was stopped, or this session was terminated: try again",
    errors.CrashShutdown: "another session crashed the server, which starts again: try again",
    errors.CannotConnectNow: _MOMENT,
    errors.DatabaseDropped: "the database was dropped",
    errors.IdleInTransactionSessionTimeout: "this process stood still in a transaction: try again",
    errors.TransactionTimeout: "this process stood still in a transaction: try again",
    errors.ReadOnlySqlTransaction: READ_ONLY,
    errors.InvalidPassword: _LOGIN,
    errors.InvalidAuthorizationSpecification: _LOGIN,
    errors.InvalidCatalogName: "create the database, or correct DATABASE_URL",
}

# If no connection was made, libpq has no SQLSTATE, only the server's message.
_WORDS: tuple[tuple[str, str], ...] = (
    (r"password|pg_hba|role .* does not exist|not permitted to log in|authentication", _LOGIN),
    (r"database .* does not exist|no such database", _MEANINGS[errors.InvalidCatalogName]),
    (r"too many|connection slots|no more connections", FULL),
    (r"starting up|shutting down|recovery mode|not (yet )?accepting", _MOMENT),
    (r"read-only|hot standby|read-write", READ_ONLY),
    (r"\bSSL\b|\bTLS\b|certificate", "check sslmode and sslrootcert in DATABASE_URL"),
)


def words(error: psycopg.Error) -> str:
    """The message of the server or libpq, in one line. It never contains a password."""
    return " ".join((error.diag.message_primary or str(error)).split())


def advice(error: psycopg.Error) -> str | None:
    """What the error means or what to do; None if its message says it."""
    for kind, meaning in _MEANINGS.items():
        if isinstance(error, kind):
            return meaning
    if error.sqlstate is not None:
        return None
    message = words(error)
    found = (meaning for spoken, meaning in _WORDS if re.search(spoken, message, re.IGNORECASE))
    return next(found, _UNREACHABLE)
