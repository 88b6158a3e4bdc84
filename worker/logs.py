"""Logging of a worker: one line an event, to standard error."""

from __future__ import annotations

import logging
from typing import Any

from marco_search.text import one_line, redacted

_FORMAT = "%(asctime)s %(levelname)s %(processName)s %(name)s: %(message)s"
_TRACE = "    | "  # before each line of a traceback: none looks like an event of its own


class Lines(logging.Formatter):
    """Escapes control characters and hides secrets: no text can look like another event."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """The event's own line."""
        return one_line(redacted(super().formatMessage(record)))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """A traceback, each line set off."""
        return _set_off(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        """A stack, each line set off."""
        return _set_off(super().formatStack(stack_info))


def set_up(level: str) -> None:
    """Log from `level` on ("INFO", ...)."""
    handler = logging.StreamHandler()
    handler.setFormatter(Lines(_FORMAT))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Each message in and each acknowledgement out: our own lines say what happened to the job.
    for noisy in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _set_off(text: str) -> str:
    return "\n".join(_TRACE + one_line(line) for line in redacted(text).split("\n"))
