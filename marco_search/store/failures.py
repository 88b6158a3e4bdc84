"""What an error of Postgres means, and what to do about it."""

from __future__ import annotations

import re

import psycopg
from psycopg import errors

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

# By SQLSTATE. What is not listed speaks for itself.
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

# Of a connection that was never made libpq keeps no SQLSTATE, only the server's words.
_WORDS: tuple[tuple[str, str], ...] = (
    (r"password|pg_hba|role .* does not exist|not permitted to log in|authentication", _LOGIN),
    (r"database .* does not exist|no such database", _MEANINGS[errors.InvalidCatalogName]),
    (r"too many|connection slots|no more connections", FULL),
    (r"starting up|shutting down|recovery mode|not (yet )?accepting", _MOMENT),
    (r"read-only|hot standby|read-write", READ_ONLY),
    (r"\bSSL\b|\bTLS\b|certificate", "check sslmode and sslrootcert in DATABASE_URL"),
)


def words(error: psycopg.Error) -> str:
    """The server's or libpq's own words, in one line. They never hold a password."""
    return " ".join((error.diag.message_primary or str(error)).split())


def advice(error: psycopg.Error) -> str | None:
    """What the error means or asks for; None where its words say it."""
    for kind, meaning in _MEANINGS.items():
        if isinstance(error, kind):
            return meaning
    if error.sqlstate is not None:
        return None
    message = words(error)
    found = (meaning for spoken, meaning in _WORDS if re.search(spoken, message, re.IGNORECASE))
    return next(found, _UNREACHABLE)
