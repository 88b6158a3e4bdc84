"""The one task: run a job."""

from __future__ import annotations

import logging
from uuid import UUID

from marco_search.broker import TASK
from worker import process
from worker.app import app

log = logging.getLogger(__name__)


def run_job(job_id: str) -> None:
    """Run the job with this id, if it is still to be run."""
    try:
        known = UUID(job_id)
    except (ValueError, AttributeError, TypeError):
        log.error("a message holds no job id: %.80r", job_id)
        return
    process.runner().run(known)


app.task(name=TASK)(run_job)
