"""What is reachable, what is wrong, and how to fix it. Starts nothing and changes nothing."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo
from redis import RedisError

from marco_search import broker
from marco_search.errors import MarcoError, SchemaMismatch
from marco_search.jobs import SearchOptions
from marco_search.jobs.validation import nearest
from marco_search.local import is_running, programs, read_urls
from marco_search.locations import database_url, redis_url
from marco_search.settings import (
    RENAMED,
    Settings,
    console_refusal,
    without_password,
    worker_refusal,
)
from marco_search.store.db import OLDEST_POSTGRES, SCHEMA_REVISION, Conn, check_schema, reads_tables
from marco_search.store.postgres import (
    ENCODING,
    FULL,
    READ_ONLY,
    advice,
    conninfo,
    hosts,
    parameters,
    shown,
    words,
)
from marco_search.store.queue import tenants
from marco_search.store.reads import queries
from marco_search.text import redacted

_LEAST_SPACE = 2**30  # bytes
_PYTHONS = ((3, 11), (3, 12), (3, 13), (3, 14))
_OLDEST_REDIS = (6, 2)  # kombu's demand
_ANSWER_S = 3
_MOST = 12  # differences shown
_KNOWN_NAMES = {str(field.validation_alias) for field in Settings.model_fields.values()}
_KNOWN_NAMES |= {*RENAMED, "MARCO_PYTHON", "MARCO_CHROMIUM"}  # bootstrap and tests read the last
_IDLE = "embedded, not running: commands that need it start it, `marco up` keeps it"
_RESTART = "run `marco down`, then `marco up`; see the logs in MARCO_HOME"
_WRITER = "to submit or run jobs, let DATABASE_URL name a login of the app's or the owner's role"
_GUARDS = (
    "`marco migrate` restores views, functions, policies and rights; its owner undoes what was "
    "added or disabled. Then find out who did it: until then nothing protected the trail"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. Holds no password.

    Attributes: `name` of the check; `ok`, whether it passed; `detail`, what was found; `fix`,
    what to do if it failed.
    """

    name: str
    ok: bool
    detail: str
    fix: str = ""


def run_checks(settings: Settings) -> list[Finding]:
    """All findings, dependencies first. May take several seconds."""
    machine = [_python, _settings, variables, _home]
    if settings.database_url is None or settings.redis_url is None:
        machine += [_disk, _programs]
    services = [postgres, schema, pauses, guards, models, redis, worker, _model]
    return [_run(check, settings) for check in (*machine, *services)]


def _run(check: Callable[[Settings], Finding], settings: Settings) -> Finding:
    """A check that raises is a finding, too: the other checks still run."""
    name = check.__name__.strip("_")
    try:
        found = check(settings)
    except MarcoError as error:
        found = Finding(name, False, str(error))
    except Exception as error:
        found = Finding(name, False, f"{type(error).__name__}: {error}")
    # Client libraries may quote an address in their errors, and these lines go into reports.
    return replace(found, detail=redacted(found.detail))


def _python(_: Settings) -> Finding:
    fix = "set MARCO_PYTHON to a Python 3.11 to 3.14 and run `make install`"
    detail = f"{platform.python_version()} ({sys.executable})"
    return Finding("python", sys.version_info[:2] in _PYTHONS, detail, fix)


def _settings(settings: Settings) -> Finding:
    """Would the worker and the console start with these?"""
    refused = list(filter(None, (worker_refusal(settings), console_refusal(settings))))
    detail = "; ".join(refused) or "accepted by the worker and the console"
    return Finding("settings", not refused, detail, "change them")


def variables(_: Settings) -> Finding:
    """Is each MARCO_ variable read by something?"""
    known = [name.lower() for name in _KNOWN_NAMES]
    unread = []
    for name in unknown_names(os.environ):
        meant = nearest(name, known)
        hint = f", did you mean {meant.upper()}?" if meant else ""
        unread.append(f"{name} is not a setting{hint}")
    detail = "; ".join(unread) or "every MARCO_ name is known"
    return Finding("variables", not unread, detail, "unset them, or write them as in the README")


def unknown_names(environment: Mapping[str, str]) -> list[str]:
    """Variables that look like settings but are not."""
    ours = [name for name in _KNOWN_NAMES if name.startswith("MARCO_")]
    return sorted(
        name
        for name in environment
        if name.upper() not in _KNOWN_NAMES
        and (name.upper().startswith("MARCO_") or get_close_matches(name.upper(), ours, 1, 0.88))
    )


def _home(settings: Settings) -> Finding:
    home = settings.home.absolute()
    existing = home if home.is_symlink() else _existing(home)
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        fix = "set MARCO_HOME to a folder that you can write to"
        return Finding("home", False, f"{existing} is not a folder, or not writable", fix)
    read_urls(home)  # raises when it is another user's
    return Finding("home", True, str(home))


def _disk(settings: Settings) -> Finding:
    free = shutil.disk_usage(_existing(settings.home.absolute())).free
    detail = f"{free / 2**30:.1f} GiB free"
    return Finding("disk", free >= _LEAST_SPACE, detail, "free 1 GiB, or move MARCO_HOME")


def _existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists."""
    return next(p for p in (path, *path.parents) if p.exists())


def _programs(_: Settings) -> Finding:
    site = programs.installed()
    return Finding("programs", True, f"{site / programs.POSTGRES}, {site / programs.REDIS}")


def _is_idle(settings: Settings, url: object) -> bool:
    """Whether this server is an embedded one that is not in use now."""
    return url is None and not is_running(settings.home)


def _connected(url: str, **changes: str) -> Conn:
    known = conninfo(url, "marco doctor")
    given = make_conninfo(known, connect_timeout=_ANSWER_S, **changes)
    return psycopg.connect(given, autocommit=True)


def postgres(settings: Settings) -> Finding:
    """Does Postgres respond, is it recent enough, and can jobs be written to it?"""
    if _is_idle(settings, settings.database_url):
        return Finding("postgres", True, _IDLE)
    url = database_url(settings)
    detail = shown(url)
    try:
        with _connected(url) as conn:
            troubles = _troubles(conn)
            own = conn.execute("SELECT pg_backend_pid()").fetchone()
            pooled = own != (conn.info.backend_pid,)
            version = conn.info.server_version
    except psycopg.Error as error:
        fix = advice(error) or "see the server's log"
        fix = _RESTART if settings.database_url is None else fix
        return Finding("postgres", False, f"{detail}: {words(error)}", fix)
    detail = f"{version // 10_000}.{version % 10_000} at {detail}"
    if pooled:
        detail += ", through a pooler: waiting for results polls every two seconds"
    several = hosts(parameters(url))
    for host, port in several if len(several) > 1 else []:
        try:
            _connected(url, host=host, port=port, target_session_attrs="any").close()
        except psycopg.Error:
            detail += f"; no answer from {host}:{port}"
    detail = "; ".join([detail, *troubles])
    return Finding("postgres", not troubles, detail, "; ".join(troubles.values()))


def _troubles(conn: Conn) -> dict[str, str]:
    """Problems of the server or the database, each with what to do about it."""
    row = conn.execute(
        "SELECT current_setting('transaction_read_only') = 'on',"
        " current_setting('max_connections')::int,"
        " (SELECT count(*)::int FROM pg_stat_activity WHERE backend_type = 'client backend')"
    ).fetchone()
    assert row is not None
    read_only, most, taken = row
    encoding = conn.info.parameter_status("server_encoding")
    seen = (
        (conn.info.server_version // 10_000 < OLDEST_POSTGRES, "too old",
         f"use Postgres {OLDEST_POSTGRES} or later"),
        (encoding != "UTF8", f"the database's encoding is {encoding}", ENCODING),
        (read_only, "read-only", READ_ONLY),
        (taken > 0.9 * most, f"{taken} of {most} connections are taken", FULL),
    )  # fmt: skip
    return {trouble: fix for is_so, trouble, fix in seen if is_so}


def _in_database(look: Callable[[Conn, Settings], Finding]) -> Callable[[Settings], Finding]:
    """A check of the database's contents. An unreachable database is another check's finding."""

    @functools.wraps(look)
    def check(settings: Settings) -> Finding:
        name = look.__name__
        if _is_idle(settings, settings.database_url):
            return Finding(name, True, "checked when Postgres runs")
        try:
            with _connected(database_url(settings)) as conn, conn.transaction():
                conn.execute("SET LOCAL statement_timeout = '12s'")
                return look(conn, settings)
        except psycopg.Error as error:
            return Finding(name, name != "schema", f"not checked: {words(error)}")
        except SchemaMismatch as error:
            detail, _, fix = str(error).partition(": ")
            return Finding(name, name != "schema", detail, fix)

    return check


@_in_database
def schema(conn: Conn, settings: Settings) -> Finding:
    """Is the database at this version's migration, and can this login write to it?"""
    if not reads_tables(conn):
        return Finding("schema", False, "an auditor's login, it reads views only", _WRITER)
    made = conn.execute("SELECT to_regclass('public.alembic_version')").fetchone() != (None,)
    if settings.database_url is None and not made:
        return Finding("schema", True, "none yet: the first command that needs it creates it")
    check_schema(conn)
    writes = conn.execute("SELECT has_table_privilege('public.jobs', 'INSERT')").fetchone()
    if writes != (True,):
        detail = f"{SCHEMA_REVISION}; an auditor's login, it only reads"
        return Finding("schema", False, detail, _WRITER)
    return Finding("schema", True, SCHEMA_REVISION)


@_in_database
def pauses(conn: Conn, _: Settings) -> Finding:
    """Paused jobs look like jobs that no worker takes."""
    named = [f"tenant {p.tenant}" if p.tenant else "all tenants" for p in tenants.pauses(conn)]
    detail = f"paused: {', '.join(named)}" if named else "nothing is paused"
    well = "all tenants" not in named
    return Finding("pauses", well, detail, "`marco resume --all` resumes them")


@_in_database
def guards(conn: Conn, settings: Settings) -> Finding:
    """Are triggers, functions, views, policies and rights as the migrations make them?"""
    from marco_search.migrations import derived

    if not reads_tables(conn):
        return Finding("guards", True, "not checked: an auditor's login")
    check_schema(conn)
    found = derived.differences(conn, settings.role_prefix)
    more = [f"and {len(found) - _MOST} more"] if len(found) > _MOST else []
    detail = "; ".join([*found[:_MOST], *more]) or "as the migrations make them"
    return Finding("guards", not found, detail, _GUARDS)


@_in_database
def models(conn: Conn, _: Settings) -> Finding:
    """Are there jobs that were started on a model that no worker has?"""
    found = queries.missing_models(conn)
    detail = "; ".join(map(str, found)) or "no job waits for a model that no worker has"
    fix = "run a worker with that model, or restart them: `marco requeue --restart --all`"
    return Finding("models", not found, detail, fix)


def redis(settings: Settings) -> Finding:
    """Does Redis respond, and is it recent enough?"""
    if _is_idle(settings, settings.redis_url):
        return Finding("redis", True, _IDLE)
    url = redis_url(settings)
    where = without_password(url)
    try:
        with broker.parse_address(url).client(socket_timeout=_ANSWER_S, retry=None) as client:
            server = client.info("server")
            # Valkey also reports the version of Redis that it is compatible with.
            version = str(server.get("valkey_version", server["redis_version"]))
    except RedisError as error:
        fix = "check that it runs and that REDIS_URL is right" if settings.redis_url else _RESTART
        return Finding("redis", False, f"{where}: {error}", fix)
    ok = tuple(int(part) for part in version.split(".")[:2]) >= _OLDEST_REDIS
    return Finding("redis", ok, f"{version} at {where}", "use Redis 6.2 or later")


def worker(settings: Settings) -> Finding:
    """How many jobs wait in the queue, and does a worker respond?"""
    if _is_idle(settings, settings.redis_url):
        return Finding("worker", True, "none: Redis is not running")
    if not redis(settings).ok:  # quicker than waiting for the publisher's error
        return Finding("worker", False, "unknown: Redis does not respond")
    with closing(broker.Publisher(redis_url(settings), settings.queue)) as publisher:
        waiting, names = publisher.length(), publisher.workers()
    # A worker in the middle of starting or of a long call may be late; no job waits then.
    detail = f"{', '.join(names) or 'none answers'}; {waiting} waiting in the queue"
    return Finding("worker", bool(names) or waiting == 0, detail, "run `marco worker`")


def _model(settings: Settings) -> Finding:
    from marco_search.engine import profile_of
    from marco_search.runtime import open_runtime

    try:
        info = open_runtime(settings).info
        profile = profile_of(SearchOptions(), info.model)
    except MarcoError as error:
        return Finding("model", False, str(error), "see MARCO_RUNTIME, MARCO_MODEL, MARCO_PROFILE")
    detail = f"{info.model} on {info.name} {info.version}, {info.context_tokens} tokens"
    detail += f", profile {profile.name}"
    if not (info.own_template or profile.fallback_template):
        detail += ", prompts in ChatML as its chat template can't be had"
    if info.lacks:
        detail += f"; it can't do or say: {'; '.join(info.lacks)}"
    return Finding("model", True, detail)
