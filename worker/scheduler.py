"""The entry of `marco scheduler`: the sweep as a process of its own.

Any number may run, beside workers that sweep or instead of them. One that dies costs nothing:
every step is a transaction, and another sweep goes on.
"""

from __future__ import annotations

import logging
import os
import signal
from types import FrameType

from marco_search.errors import SchemaMismatch
from marco_search.locations import database_url
from marco_search.settings import Settings
from marco_search.store.db import Database
from worker import logs, process
from worker.sweep import Sweeper

log = logging.getLogger(__name__)

_STOP_S = 5  # for the sweep in progress, when told to stop


def run(settings: Settings) -> int:
    """Sweep until SIGTERM or Ctrl-C; the exit code.

    Raises DatabaseUnavailable before anything is done; Redis may be down. Raises SchemaMismatch
    then, and when the database was migrated.
    """
    database = Database(database_url(settings), application="marco scheduler", connections=1)
    with database.transaction():
        pass
    database.close()
    process.use(settings)
    logs.set_up(settings.log_level)
    migrated: list[SchemaMismatch] = []
    sweeper = Sweeper(process.sweep, migrated.append)

    def leave(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGALRM:
            os._exit(0)  # a sweep that hangs; it leaves nothing half done
        sweeper.ask_to_stop()
        signal.alarm(_STOP_S)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGALRM):
        signal.signal(number, leave)
    log.info("scheduler: looking after the queue, lease %g s", settings.lease_s)
    sweeper.run()
    signal.alarm(0)
    if migrated:
        raise migrated[0]
    log.info("scheduler: stopped")
    return 0
