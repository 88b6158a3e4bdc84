"""How a failure is reported: a sentence for people or an object for scripts, and an exit code."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from errno import ENOSPC
from typing import Any

import click

from marco_search.errors import Backpressure, InvalidBatch, MarcoError
from marco_search.text import escaped, redacted

BAD_INPUT = 2
JOBS_NOT_DONE = 7
DOES_NOT_FIT = 9
OTHER_ENGINE = 10
BUG = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def report_usage(error: click.ClickException, as_json: bool) -> int:
    """Report arguments that click refused: the reason, and how the command is used."""
    message = error.format_message().rstrip(".").replace(". Did you mean", "; did you mean")
    if message[1:2].islower():  # click's sentences, as all our messages begin
        message = message[0].lower() + message[1:]
    _report("UsageError", message, BAD_INPUT, as_json)
    context = getattr(error, "ctx", None)
    if context is not None and not as_json:
        print(f"{context.get_usage()}\n`{context.command_path} --help` says more", file=sys.stderr)
    return BAD_INPUT


def report_error(error: Exception, as_json: bool, debug: bool) -> int:
    """Report an error raised on purpose, whose message says what to do, or else a bug."""
    trace = redacted("".join(traceback.format_exception(error)))
    if debug:
        print(escaped(trace), file=sys.stderr)
    name, more = type(error).__name__, dict[str, Any]()
    if isinstance(error, OSError) and error.strerror and (error.filename or error.errno == ENOSPC):
        # What was named can't be read or written, or the disk is full.
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        code = 1 if error.errno == ENOSPC else BAD_INPUT
        return _report(name, f"{where}{error.strerror}", code, as_json)
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
