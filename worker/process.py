"""What one worker process holds: its settings, database and runner.

A pool child makes its own after the fork, when its first job comes, and keeps it.
"""

from __future__ import annotations

import logging
import os
import socket
from functools import cache
from uuid import UUID

from marco_search import settings as settings_module
from marco_search.broker import Publisher
from marco_search.errors import BrokerUnavailable
from marco_search.locations import database_url, redis_url
from marco_search.runtime import open_runtime
from marco_search.runtime.base import Runtime
from marco_search.settings import Settings
from marco_search.store.db import Database
from marco_search.store.queue import outbox
from marco_search.store.queue.leases import Worker
from worker import stopping, watchdog
from worker.runner import Runner
from worker.sweep import Sweep

log = logging.getLogger(__name__)

_chosen: Settings | None = None


def use(settings: Settings) -> None:
    """Run with these settings instead of the environment's. Before anything else is asked."""
    global _chosen
    _chosen = settings


def settings() -> Settings:
    """The settings of this worker."""
    return _chosen or settings_module.load()


@cache
def runner() -> Runner:
    """The runner of this process."""
    return Runner(
        settings(),
        _database(),
        opened_runtime,
        _this_process(""),
        publish=_publish,
        left_s=stopping.left_s,
        time_is_up=stopping.time_is_up,
    )


def opened_runtime() -> Runtime:
    """A runtime as the settings name it, opened. Raises what `open_runtime` does."""
    with watchdog.unwatched():
        return open_runtime(settings())


def close() -> None:
    """Close what this process has opened, if anything."""
    if runner.cache_info().currsize:
        runner().close()
        _publisher().close()
        _database().close()


def sweep() -> Sweep:
    """A sweep with connections of its own."""
    database = Database(database_url(settings()), application="marco sweep", connections=1)
    publisher = Publisher(redis_url(settings()), settings().queue)
    return Sweep(settings(), database, publisher, _this_process("sweep "))


def _publish(job_id: UUID) -> None:
    """Tell the broker of a job that this process has given back."""
    try:
        _publisher().publish([job_id])
    except BrokerUnavailable as error:
        log.warning("job %s waits for Redis: %s", job_id, error)
        with _database().transaction() as conn:
            outbox.unpublished(conn, [job_id])


def _this_process(prefix: str) -> Worker:
    host, pid = socket.gethostname(), os.getpid()
    return Worker(name=f"{prefix}{host}:{pid}", host=host, pid=pid)


@cache
def _publisher() -> Publisher:
    return Publisher(redis_url(settings()), settings().queue)


@cache
def _database() -> Database:
    # One for the search, one for its heartbeat.
    return Database(database_url(settings()), application="marco worker", connections=2)
