"""The entry of `marco worker`: Celery's worker in this process, until it is told to stop.

SIGTERM or Ctrl-C: take no more jobs, finish those that run, leave. SIGQUIT, or either once
more: leave at once; what runs goes on elsewhere when its lease has run out.
"""

from __future__ import annotations

import socket
import warnings

from marco_search.errors import InvalidSettings
from marco_search.locations import database_url
from marco_search.settings import Settings
from marco_search.store.connect import Database
from worker import process


def run(settings: Settings, *, processes: int | None = None, name: str = "celery") -> int:
    """Run jobs until stopped; the exit code. `processes` is how many run at once.

    `name` tells workers on one machine apart: the Celery node is `name@host`.
    Raises InvalidSettings, DatabaseUnavailable or SchemaMismatch before anything is started;
    Redis may be down, the worker waits for it.
    """
    if settings.heartbeat_s * 2 > settings.lease_s:
        raise InvalidSettings(
            f"MARCO_HEARTBEAT_S: {settings.heartbeat_s:g} is too long for MARCO_LEASE_S "
            f"{settings.lease_s:g}; at least two heartbeats must fit into a lease"
        )
    database = Database(database_url(settings), application="marco worker", connections=1)
    with database.transaction():
        pass
    # Before the fork: children make their own connections.
    database.close()
    process.use(settings)
    from worker.app import app

    # As root, or as a user without an entry: a danger with pickle only, which is refused.
    warnings.filterwarnings("ignore", module=r"celery\.platforms")
    worker = app.Worker(
        hostname=f"{name}@{socket.gethostname()}",
        concurrency=processes or settings.worker_processes,
        loglevel=settings.log_level.upper(),
        quiet=True,
        without_gossip=True,
        without_mingle=True,
    )
    worker.start()
    return int(worker.exitcode or 0)
