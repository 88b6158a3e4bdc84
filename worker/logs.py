"""Logging of a worker: one line an event, to standard error."""

from __future__ import annotations

import logging


def set_up(level: str) -> None:
    """Log from `level` on ("INFO", ...)."""
    logging.basicConfig(
        level=level.upper(),
        format="%(asctime)s %(levelname)s %(processName)s %(name)s: %(message)s",
        force=True,
    )
    # Each message in and each acknowledgement out: our own lines say what happened to the job.
    for noisy in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
