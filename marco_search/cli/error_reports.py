"""How a failure is reported: a sentence for people or an object for scripts, and an exit code."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback

import click

from marco_search.errors import Backpressure, InvalidBatch, InvalidJob, MarcoError
from marco_search.text import escaped, redacted

JOBS_NOT_DONE = 7
DOES_NOT_FIT = 9
OTHER_ENGINE = 10
BUG = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def report_usage(error: click.ClickException, as_json: bool) -> int:
    """Report arguments that click refused: the usage line and the reason."""
    if as_json:
        _write_json("UsageError", error.format_message(), error.exit_code)
    else:
        error.message = _safe(error.message)  # type: ignore[misc]  # final for subclasses only
        error.show(sys.stderr)
    return error.exit_code


def report_error(error: MarcoError, as_json: bool, debug: bool) -> int:
    """Report an error raised on purpose: its own message says what to do."""
    if debug:
        print(escaped(_traceback(error)), file=sys.stderr)
    name, details = type(error).__name__, dict[str, object]()
    if isinstance(error, Backpressure):
        details["retry_after_s"] = error.retry_after_s
    if isinstance(error, InvalidBatch):
        details["errors"] = [_bad_line(line) for line in error.errors]
    return _report(name, str(error) or name, error.exit_code, as_json, details)


def report_bug(error: Exception, as_json: bool, debug: bool) -> int:
    """Report an exception nobody raised on purpose: a short message, the traceback in a file."""
    reason = "".join(traceback.format_exception_only(error)).strip().splitlines()[0]
    if debug:
        print(escaped(_traceback(error)), file=sys.stderr)
        where = "its traceback is above"
    else:
        where = f"its traceback is in {_keep_traceback(error)}; --debug prints it"
    message = f"a bug in marco-search, please report it ({reason}); {where}"
    return _report(type(error).__name__, message, BUG, as_json, {})


def _report(name: str, message: str, code: int, as_json: bool, details: dict[str, object]) -> int:
    if as_json:
        _write_json(name, message, code, **details)
    else:
        print(f"marco: {_safe(message)}", file=sys.stderr)
    return code


def _bad_line(error: InvalidJob) -> dict[str, object]:
    place, _, field = error.field.partition(", ")
    number = place.removeprefix("line ")
    line = int(number) if number.isdecimal() else None
    return {"line": line, "field": field or None, "reason": redacted(error.reason)}


def _safe(text: str) -> str:
    """`text` without secrets, and without what a terminal would obey."""
    return escaped(redacted(text))


def _traceback(error: Exception) -> str:
    return redacted("".join(traceback.format_exception(error)))


def _keep_traceback(error: Exception) -> str:
    # Not under MARCO_HOME: what is broken may be just that. mkstemp's file is the user's own.
    handle, path = tempfile.mkstemp(prefix="marco-", suffix=".traceback.txt")
    with os.fdopen(handle, "w", errors="replace") as file:
        file.write(_traceback(error))
    return path


def _write_json(name: str, message: str, code: int, **more: object) -> None:
    data = {"error": {"type": name, "message": redacted(message), "exit_code": code, **more}}
    print(escaped(json.dumps(data, ensure_ascii=False)), file=sys.stderr)
