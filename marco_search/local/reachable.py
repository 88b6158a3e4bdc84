"""The doctor's questions to Postgres, Redis and the workers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any, TypeVar

import psycopg
from psycopg.conninfo import make_conninfo
from redis import RedisError

from marco_search import broker, local_state
from marco_search.errors import MarcoError, SchemaMismatch
from marco_search.local.finding import Finding
from marco_search.locations import database_url, redis_url
from marco_search.settings import Settings, without_password
from marco_search.store import address, failures
from marco_search.store.db import (
    OLDEST_POSTGRES,
    SCHEMA_REVISION,
    Conn,
    Database,
    check_schema,
    reads_tables,
)
from marco_search.store.failures import advice, words
from marco_search.store.queue import holds
from marco_search.store.reads import queries

T = TypeVar("T")

_OLDEST_REDIS = (6, 2)  # kombu's demand
_ANSWER_S = 3
_MOST = 12  # differences shown
_GUARDS = (
    "`marco migrate` makes views, functions, policies and rights anew; what was added or switched "
    "off its owner undoes. Then find out who did it: until then nothing protected the trail"
)
_WRITER = "to submit or run jobs, let DATABASE_URL name a login of the app's or the owner's role"
_IDLE = "embedded, not running: commands that need it start it, `marco up` keeps it"


def _is_idle(settings: Settings, url: object) -> bool:
    """Whether this server is an embedded one that nobody needs at the moment."""
    if url is not None:
        return False
    state = local_state.read(settings.home.absolute())
    return state is None or not state.running


def postgres(settings: Settings) -> Finding:
    """Does Postgres answer, is it recent enough, and can jobs be written to it?"""
    if _is_idle(settings, settings.database_url):
        return Finding("postgres", True, _IDLE, "")
    url = database_url(settings)
    where = address.shown(url)
    try:
        with _connected(url) as session:
            troubles = _troubles(session)
            own = session.execute("SELECT pg_backend_pid()").fetchone()
            pooled = own != (session.info.backend_pid,)
            version = session.info.server_version
    except psycopg.Error as error:
        mend = advice(error) or "see the server's log"
        if settings.database_url is None:
            mend = "run `marco down`, then `marco up`; see logs/postgres.log in MARCO_HOME"
        return Finding("postgres", False, f"{where}: {words(error)}", mend)
    detail = f"{version // 10_000}.{version % 10_000} at {where}"
    if pooled:
        detail += ", through a pooler: who waits for results looks every two seconds"
    others = _silent_hosts(url)
    if others:
        detail += f"; no answer from {', '.join(others)}"
    for trouble, _ in troubles:
        detail += f"; {trouble}"
    return Finding("postgres", not troubles, detail, "; ".join(mend for _, mend in troubles))


def _connected(url: str, **changes: str) -> psycopg.Connection[tuple[Any, ...]]:
    known = address.conninfo(url, "marco doctor")
    conninfo = make_conninfo(known, connect_timeout=_ANSWER_S, **changes)
    return psycopg.connect(conninfo, autocommit=True)


def _troubles(session: psycopg.Connection[tuple[Any, ...]]) -> list[tuple[str, str]]:
    """What is wrong with the server or the database, and what to do about each."""
    row = session.execute(
        "SELECT current_setting('transaction_read_only') = 'on',"
        " current_setting('max_connections')::int,"
        " (SELECT count(*)::int FROM pg_stat_activity WHERE backend_type = 'client backend')"
    ).fetchone()
    assert row is not None
    read_only, most, taken = row
    encoding = session.info.parameter_status("server_encoding")
    found = []
    if session.info.server_version // 10_000 < OLDEST_POSTGRES:
        found.append(("too old", f"use Postgres {OLDEST_POSTGRES} or later"))
    if encoding != "UTF8":
        found.append((f"the database's encoding is {encoding}", failures.ENCODING))
    if read_only:
        found.append(("read-only", failures.READ_ONLY))
    if taken > 0.9 * most:
        found.append((f"{taken} of {most} connections are taken", failures.FULL))
    return found


def _silent_hosts(url: str) -> list[str]:
    """Of several hosts in the address, those that do not answer."""
    hosts = address.hosts(address.parameters(url))
    silent = []
    for host, port in hosts if len(hosts) > 1 else []:
        try:
            _connected(url, host=host, port=port, target_session_attrs="any").close()
        except psycopg.Error:
            silent.append(f"{host}:{port}")
    return silent


def schema(settings: Settings) -> Finding:
    """Is the database at this version's migration, and as the migrations make it?"""
    if _is_idle(settings, settings.database_url):
        return Finding("schema", True, "seen when Postgres runs", "")
    try:
        with _connected(database_url(settings)) as conn:
            return _schema(conn, is_embedded=settings.database_url is None)
    except SchemaMismatch as error:
        what, _, mend = str(error).partition(": ")
        return Finding("schema", False, what, mend)
    except psycopg.Error:
        return Finding("schema", False, "unknown: Postgres does not answer", "")


def _schema(conn: psycopg.Connection[tuple[Any, ...]], *, is_embedded: bool) -> Finding:
    if not reads_tables(conn):
        return Finding("schema", False, "this login is an auditor's, it reads views only", _WRITER)
    made = conn.execute("SELECT to_regclass('public.alembic_version')").fetchone() != (None,)
    if is_embedded and not made:
        return Finding("schema", True, "none yet: the first command that needs it makes it", "")
    check_schema(conn)
    writes = conn.execute("SELECT has_table_privilege('public.jobs', 'INSERT')").fetchone()
    if writes != (True,):
        detail = f"{SCHEMA_REVISION}; this login is an auditor's, it only reads"
        return Finding("schema", False, detail, _WRITER)
    return Finding("schema", True, SCHEMA_REVISION, "")


def _read(name: str, settings: Settings, read: Callable[[Conn], T], *, unread: str) -> T | Finding:
    """What `read` finds in the database; a finding that says why it was not looked at."""
    if _is_idle(settings, settings.database_url):
        return Finding(name, True, "seen when Postgres runs", "")
    try:
        with (
            closing(Database(database_url(settings), application="marco doctor")) as database,
            database.transaction() as conn,
        ):
            return read(conn)
    except MarcoError:  # what keeps it from being read has a line of its own
        return Finding(name, True, f"unknown: {unread}", "")


def pauses(settings: Settings) -> Finding:
    """What is held back? Jobs that wait because of it look like jobs that nobody takes."""
    found = _read("pauses", settings, holds.pauses, unread="they can't be read")
    if isinstance(found, Finding):
        return found
    named = [f"tenant {pause.tenant}" if pause.tenant else "all tenants" for pause in found]
    detail = f"paused: {', '.join(named)}" if found else "nothing is paused"
    held = any(pause.tenant == holds.EVERYONE for pause in found)
    return Finding("pauses", not held, detail, "`marco resume --all` lets jobs go on")


def guards(settings: Settings) -> Finding:
    """Are triggers, functions, views, policies and rights as the migrations make them?"""
    from marco_search.migrations import objects

    if _is_idle(settings, settings.database_url):
        return Finding("guards", True, "seen when Postgres runs", "")
    try:
        with _connected(database_url(settings)) as conn:
            if not reads_tables(conn):
                return Finding("guards", True, "not looked at: an auditor's login", "")
            check_schema(conn)
            found = objects.differences(conn, settings.role_prefix)
    except (SchemaMismatch, psycopg.Error) as error:
        return Finding("guards", True, f"not looked at: {error}", "")
    if not found:
        return Finding("guards", True, "as the migrations make them", "")
    shown = [*found[:_MOST], *([f"and {len(found) - _MOST} more"] if len(found) > _MOST else [])]
    return Finding("guards", False, "; ".join(shown), _GUARDS)


def missing_models(settings: Settings) -> Finding:
    """Are there jobs that were begun on a model which no worker has?"""
    found = _read("models", settings, queries.missing_models, unread="the jobs can't be read")
    if isinstance(found, Finding):
        return found
    detail = "; ".join(map(str, found)) or "no job waits for another model than workers have"
    mend = "run a worker with that model, or begin them anew: `marco requeue --restart --all`"
    return Finding("models", not found, detail, mend)


def redis(settings: Settings) -> Finding:
    """Does Redis answer, and is it recent enough?"""
    if _is_idle(settings, settings.redis_url):
        return Finding("redis", True, _IDLE, "")
    url = redis_url(settings)
    where = without_password(url)
    try:
        with broker.parse_address(url).client(socket_timeout=_ANSWER_S, retry=None) as client:
            version = str(client.info("server")["redis_version"])
    except RedisError as error:
        mend = "see that it runs and that REDIS_URL is right"
        if settings.redis_url is None:
            mend = "run `marco down`, then `marco up`; see logs/redis.log in MARCO_HOME"
        return Finding("redis", False, f"{where}: {error}", mend)
    ok = tuple(int(part) for part in version.split(".")[:2]) >= _OLDEST_REDIS
    return Finding("redis", ok, f"{version} at {where}", "use Redis 6.2 or later")


def worker(settings: Settings) -> Finding:
    """How many jobs wait in the queue, and does a worker answer?"""
    from marco_search.broker import Publisher

    if _is_idle(settings, settings.redis_url):
        return Finding("worker", True, "none: Redis is not running", "")
    if not redis(settings).ok:
        return Finding("worker", False, "unknown: Redis does not answer", "")
    url = redis_url(settings)
    publisher = Publisher(url, settings.queue)
    try:
        waiting, names = publisher.length(), publisher.workers()
    except MarcoError:
        return Finding("worker", False, "unknown: Redis does not answer", "")
    finally:
        publisher.close()
    # A worker in the middle of starting or of a long call may be late; no job waits then.
    ok = bool(names) or waiting == 0
    shown = ", ".join(names) or "none answers"
    return Finding("worker", ok, f"{shown}; {waiting} waiting in the queue", "run `marco worker`")
