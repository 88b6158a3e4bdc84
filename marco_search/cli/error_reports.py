"""How a failure is reported: a sentence for people or an object for scripts, and an exit code."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from typing import Any

import click

from marco_search.errors import Backpressure, InvalidBatch, MarcoError
from marco_search.text import escaped, redacted

JOBS_NOT_DONE = 7
DOES_NOT_FIT = 9
OTHER_ENGINE = 10
BUG = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def report_usage(error: click.ClickException, as_json: bool) -> int:
    """Report arguments that click refused: the usage line and the reason."""
    if as_json:
        return _report("UsageError", error.format_message(), error.exit_code, as_json)
    error.message = escaped(redacted(error.message))  # type: ignore[misc]  # final for subclasses
    error.show(sys.stderr)
    return error.exit_code


def report_error(error: Exception, as_json: bool, debug: bool) -> int:
    """Report an error raised on purpose, whose message says what to do, or else a bug."""
    trace = redacted("".join(traceback.format_exception(error)))
    if debug:
        print(escaped(trace), file=sys.stderr)
    name, more = type(error).__name__, dict[str, Any]()
    if not isinstance(error, MarcoError):
        where = "is above" if debug else f"is in {_kept(trace)}; --debug prints it"
        reason = "".join(traceback.format_exception_only(error)).strip().splitlines()[0]
        message = f"a bug in marco-search, please report it ({reason}); its traceback {where}"
        return _report(name, message, BUG, as_json)
    if isinstance(error, Backpressure):
        more["retry_after_s"] = error.retry_after_s
    if isinstance(error, InvalidBatch):
        more["errors"] = errors = []
        for line in error.errors:
            place, _, field = line.field.partition(", ")
            number = place.removeprefix("line ")
            at = int(number) if number.isdecimal() else None
            errors.append({"line": at, "field": field or None, "reason": redacted(line.reason)})
    return _report(name, str(error) or name, error.exit_code, as_json, **more)


def _report(name: str, message: str, code: int, as_json: bool, **more: Any) -> int:
    text = f"marco: {redacted(message)}"
    if as_json:
        about = {"type": name, "message": redacted(message), "exit_code": code, **more}
        text = json.dumps({"error": about}, ensure_ascii=False)
    print(escaped(text), file=sys.stderr)
    return code


def _kept(trace: str) -> str:
    # Not under MARCO_HOME: what is broken may be just that. mkstemp's file is the user's own.
    handle, path = tempfile.mkstemp(prefix="marco-", suffix=".traceback.txt")
    with os.fdopen(handle, "w", errors="replace") as file:
        file.write(trace)
    return path
