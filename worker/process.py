"""What one worker process holds: its settings, database and runner.

A pool child makes its own after the fork, when its first job comes, and keeps it.
"""

from __future__ import annotations

import os
import socket
from functools import cache

from marco_search import settings as settings_module
from marco_search.broker import Publisher
from marco_search.locations import database_url, redis_url
from marco_search.runtime import open_runtime
from marco_search.settings import Settings
from marco_search.store.connect import Database
from marco_search.store.leases import Worker
from worker.runner import Runner

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
    host, pid = socket.gethostname(), os.getpid()
    return Runner(
        settings(),
        _database(),
        lambda: open_runtime(settings()),
        Worker(name=f"{host}:{pid}", host=host, pid=pid),
    )


def close() -> None:
    """Close what this process has opened, if anything."""
    if runner.cache_info().currsize:
        runner().close()
        _database().close()


def sweep_connections() -> tuple[Database, Publisher]:
    """What a sweep needs, apart from what jobs use."""
    database = Database(database_url(settings()), application="marco sweep", connections=1)
    return database, Publisher(redis_url(settings()), settings().queue)


@cache
def _database() -> Database:
    # One for the search, one for its heartbeat.
    return Database(database_url(settings()), application="marco worker", connections=2)
