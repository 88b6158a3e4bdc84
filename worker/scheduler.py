"""The entry of `marco scheduler`: the sweep as a process of its own.

Any number may run, beside workers that sweep or instead of them. One that dies costs nothing:
every step is a transaction, and another sweep goes on.
"""

from __future__ import annotations

import logging
import signal
from types import FrameType

from marco_search.locations import database_url
from marco_search.settings import Settings
from marco_search.store.connect import Database
from worker import logs, process
from worker.sweep import Sweeper

log = logging.getLogger(__name__)


def run(settings: Settings) -> int:
    """Sweep until SIGTERM or Ctrl-C; the exit code.

    Raises DatabaseUnavailable or SchemaMismatch before anything is done; Redis may be down.
    """
    database = Database(database_url(settings), application="marco scheduler", connections=1)
    with database.transaction():
        pass
    database.close()
    process.use(settings)
    logs.set_up(settings.log_level)
    sweeper = Sweeper(process.sweep)

    def leave(number: int, frame: FrameType | None) -> None:
        sweeper.ask_to_stop()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, leave)
    log.info("scheduler: looking after the queue, lease %g s", settings.lease_s)
    sweeper.run()
    log.info("scheduler: stopped")
    return 0
