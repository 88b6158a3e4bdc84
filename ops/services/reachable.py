"""The doctor's questions to Postgres, Redis and the workers."""

from __future__ import annotations

import psycopg
from redis import Redis, RedisError

from marco_search import local_state
from marco_search.errors import MarcoError
from marco_search.locations import database_url, redis_url
from marco_search.settings import Settings, without_password
from ops.services.finding import Finding

_OLDEST_POSTGRES = 17
_OLDEST_REDIS = (6, 2)  # kombu's demand
_ANSWER_S = 3
_IDLE = "embedded, not running: commands that need it start it, `marco up` keeps it"


def _is_idle(settings: Settings, url: object) -> bool:
    """Whether this server is an embedded one that nobody needs at the moment."""
    if url is not None:
        return False
    state = local_state.read(settings.home.absolute())
    return state is None or not state.running


def postgres(settings: Settings) -> Finding:
    """Does Postgres answer, and is it recent enough?"""
    if _is_idle(settings, settings.database_url):
        return Finding("postgres", True, _IDLE, "")
    url = database_url(settings)
    where = without_password(url)
    try:
        with psycopg.connect(url, connect_timeout=_ANSWER_S) as session:
            version = session.info.server_version
    except psycopg.Error as error:
        mend = "see that it runs and that DATABASE_URL is right"
        if settings.database_url is None:
            mend = "run `marco down`, then `marco up`; see logs/postgres.log in MARCO_HOME"
        return Finding("postgres", False, f"{where}: {str(error).strip()}", mend)
    ok = version // 10_000 >= _OLDEST_POSTGRES
    mend = f"use Postgres {_OLDEST_POSTGRES} or later"
    return Finding("postgres", ok, f"{version // 10_000}.{version % 10_000} at {where}", mend)


def schema(settings: Settings) -> Finding:
    """Is the database at this version's migration?"""
    import migrations

    if _is_idle(settings, settings.database_url):
        return Finding("schema", True, "seen when Postgres runs", "")
    newest = migrations.head()
    try:
        found = migrations.current(database_url(settings))
    except MarcoError:
        return Finding("schema", False, "unknown: Postgres does not answer", "")
    if found == newest:
        return Finding("schema", True, newest, "")
    if found is None and settings.database_url is None:
        return Finding("schema", True, "none yet: the first command that needs it makes it", "")
    detail = f"{found or 'none'}, this version needs {newest}"
    return Finding("schema", False, detail, "run `marco migrate`")


def redis(settings: Settings) -> Finding:
    """Does Redis answer, and is it recent enough?"""
    if _is_idle(settings, settings.redis_url):
        return Finding("redis", True, _IDLE, "")
    url = redis_url(settings)
    where = without_password(url)
    try:
        with Redis.from_url(url, socket_timeout=_ANSWER_S) as client:
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
    from celery import Celery

    from marco_search.broker import Publisher, celery_config

    if _is_idle(settings, settings.redis_url):
        return Finding("worker", True, "none: Redis is not running", "")
    url = redis_url(settings)
    publisher = Publisher(url, settings.queue)
    try:
        waiting = publisher.length()
    except MarcoError:
        return Finding("worker", False, "unknown: Redis does not answer", "")
    finally:
        publisher.close()
    with Celery("marco", set_as_current=False, changes=celery_config(url, settings.queue)) as app:
        answers = app.control.inspect(timeout=1.0).ping() or {}
    names = ", ".join(sorted(answers)) or "none answers"
    # A worker in the middle of starting or of a long call may be late; no job waits then.
    ok = bool(answers) or waiting == 0
    return Finding("worker", ok, f"{names}; {waiting} waiting in the queue", "run `marco worker`")
