"""State of one worker process: its settings, log, connections and runner.

A pool child opens its own connections after the fork, with its first job, and keeps them.
"""

import logging
import os
import socket
from collections.abc import Callable
from contextlib import closing
from functools import cached_property
from uuid import UUID

from marco_search import settings as settings_module
from marco_search.broker import Publisher
from marco_search.errors import BrokerUnavailable
from marco_search.locations import database_url, redis_url
from marco_search.runtime import open_runtime
from marco_search.runtime.base import Runtime
from marco_search.settings import Settings
from marco_search.store.db import Database
from marco_search.store.queue import scheduling
from marco_search.store.queue.leases import Worker
from worker import watchdog
from worker.runner import Runner
from worker.shutdown import Shutdown

log = logging.getLogger(__name__)


class Process:
    """Made in the parent; every child uses its own copy.

    `open_runtime` opens the runtime that the settings name; `silent_s` is how long a child may be
    without progress after its lease (see `watchdog`).
    """

    def __init__(
        self,
        settings: Settings,
        open_runtime: Callable[[Settings], Runtime] = open_runtime,
        silent_s: float = watchdog.SILENT_S,
    ) -> None:
        self.settings = settings
        self.silent_s = silent_s
        self.shutdown = Shutdown()
        self._open_runtime = open_runtime

    @cached_property
    def runner(self) -> Runner:
        """The runner of this process."""
        return Runner(
            self.settings,
            self.database,
            self.open_runtime,
            this_worker(),
            shutdown=self.shutdown,
            publish=self._publish,
        )

    @cached_property
    def database(self) -> Database:
        """One connection for the search, one for its heartbeat."""
        url = database_url(self.settings)
        return Database(url, application="marco worker", connections=2, planned_once=True)

    @cached_property
    def publisher(self) -> Publisher:
        """The publisher of this process."""
        return Publisher(redis_url(self.settings), self.settings.queue)

    def open_runtime(self) -> Runtime:
        """The runtime that the settings name. Raises what `runtime.open_runtime` does."""
        with watchdog.unwatched():
            return self._open_runtime(self.settings)

    def close(self) -> None:
        """Close whatever this process has opened."""
        for name in ("runner", "publisher", "database"):
            if name in self.__dict__:
                getattr(self, name).close()

    def _publish(self, job_id: UUID) -> None:
        """Send a message for a job that this process has released."""
        try:
            self.publisher.publish([job_id])
        except BrokerUnavailable as error:
            log.warning("job %s waits for Redis: %s", job_id, error)
            self.database.call(scheduling.unpublished, [job_id])


_current: Process | None = None


def use(process: Process) -> None:
    """Make `process` the state of this process and its children. Called before anything else."""
    global _current
    _current = process


def current() -> Process:
    """State of this process; with the settings of the environment unless `use` was called."""
    if _current is None:
        use(Process(settings_module.load()))
    return _current  # type: ignore[return-value]  # set above


def check_database(settings: Settings) -> None:
    """Raises DatabaseUnavailable or SchemaMismatch. Leaves no connection open across the fork."""
    database = Database(database_url(settings), application="marco worker", connections=1)
    with closing(database), database.transaction():
        pass


def healthy(settings: Settings) -> None:
    """Touch MARCO_HEALTH_FILE, if there is one. Raises OSError."""
    if settings.health_file is not None:
        settings.health_file.touch()


def this_worker(prefix: str = "") -> Worker:
    """This process as one that claims jobs."""
    host, pid = socket.gethostname(), os.getpid()
    return Worker(name=f"{prefix}{host}:{pid}", host=host, pid=pid)
