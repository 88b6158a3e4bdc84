"""The one task: run the job whose turn it is."""

from __future__ import annotations

import logging
import os
import signal

from marco_search.broker import TASK
from marco_search.errors import SchemaMismatch
from worker import process, stopping, watchdog
from worker.app import app

log = logging.getLogger(__name__)


def run_job(job_id: str) -> None:
    """Run the job that is next. `job_id` only says which one the message was published for."""
    del job_id
    with stopping.kept_from_dying(process.settings().stop_s), watchdog.watched():
        try:
            process.runner().run_next()
        except SchemaMismatch as error:
            log.error("this worker takes no more jobs: %s", error)
            os.kill(os.getppid(), signal.SIGTERM)


app.task(name=TASK)(run_job)
