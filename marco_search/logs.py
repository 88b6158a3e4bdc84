"""Logs on standard error: one line per event, as text or as JSON, without secrets."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from marco_search.settings import Settings
from marco_search.text import one_line, redacted

_FORMAT = "%(asctime)s %(levelname)s %(processName)s %(name)s: %(message)s"
_TRACE = "    | "  # before each line of a traceback, so that none looks like an event

_fields: ContextVar[dict[str, Any] | None] = ContextVar("fields", default=None)


@contextmanager
def about(**fields: Any) -> Iterator[None]:
    """Context of what is logged inside the block: in JSON every event has these fields."""
    known = {name: value for name, value in fields.items() if value is not None}
    token = _fields.set({**(_fields.get() or {}), **known})
    try:
        yield
    finally:
        _fields.reset(token)


def now_about(**fields: Any) -> None:
    """Change fields of the innermost block, also for threads that run in a copy of its context."""
    known = _fields.get()
    if known is not None:
        known.update(fields)


class Lines(logging.Formatter):
    """Hides secrets, and escapes control characters: no text can look like another event."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """The event's line."""
        return one_line(redacted(super().formatMessage(record)))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """A traceback, indented."""
        return _set_off(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        """A stack, indented."""
        return _set_off(super().formatStack(stack_info))


def _set_off(text: str) -> str:
    return "\n".join(_TRACE + one_line(line) for line in redacted(text).split("\n"))


class JsonLines(logging.Formatter):
    """One JSON object per event: time, level, message, context and origin."""

    def format(self, record: logging.LogRecord) -> str:
        """The event; `traceback` only where there is one."""
        event = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": redacted(record.getMessage()),
            **(_fields.get() or {}),
            "logger": record.name,
            "process": record.processName,
            "pid": record.process,
        }
        if record.exc_info:
            event["traceback"] = redacted(self.formatException(record.exc_info))
        return json.dumps(event, default=str)


def set_up(settings: Settings) -> None:
    """Log to standard error, from MARCO_LOG_LEVEL on, as MARCO_LOG_FORMAT says."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if settings.log_format == "json" else Lines(_FORMAT))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    # Billiard's logger for dead processes does not propagate, and has no handler.
    logging.getLogger("multiprocessing").handlers = [handler]
    # Every message and acknowledgement: our own lines already tell what happened to the job.
    for noisy in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
