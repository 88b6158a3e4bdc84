"""`marco`: the commands, and how an error becomes a message and an exit code.

A command's module is imported when the command is used, so that `marco --help` answers at once.
"""

from __future__ import annotations

import gc
import importlib
import io
import json
import os
import re
import sys
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from errno import EDQUOT, EFBIG, EIO, ENOSPC
from functools import partial
from typing import Any, cast

import click

from marco_search import __version__
from marco_search.cli import loading
from marco_search.errors import Backpressure, InvalidBatch, MarcoError
from marco_search.text import escaped, redacted

# Command -> (module, line in the list of commands). In the order in which they are shown.
COMMANDS = {
    "demo": ("solve_commands", "Answer the example jobs end to end and look into the database."),
    "solve": ("solve_commands", "Answer one question in this process, without any service."),
    "submit": ("job_commands", "Submit the jobs of a JSON Lines file, or one question."),
    "status": ("job_commands", "Show where jobs stand."),
    "watch": ("job_commands", "Follow jobs live until they end."),
    "wait": ("job_commands", "Wait quietly until jobs end."),
    "show": ("job_commands", "Show a job's ranked answers, its totals and its search tree."),
    "console": ("http_commands", "Show jobs and their trees in a browser."),
    "serve": ("http_commands", "Serve the HTTP API, which OpenAI's clients can call."),
    "keys": ("http_commands", "Keys of the HTTP API: create, list, revoke."),
    "results": ("job_commands", "Print the results of jobs that have ended."),
    "cancel": ("job_commands", "Cancel jobs."),
    "pause": ("queue_commands", "Pause jobs: some, a tenant's, or all."),
    "resume": ("queue_commands", "Resume paused jobs."),
    "batch": ("batch_command", "Files of requests as batches: submit, status, watch, results."),
    "webhooks": ("http_commands", "Notify a URL when jobs and batches end: add, list, test."),
    "dead": ("queue_commands", "Dead and failed jobs: list, show, requeue."),
    "requeue": ("queue_commands", "Restart jobs whose model no worker has any more."),
    "quota": ("queue_commands", "Limit how many jobs a tenant may have queued."),
    "sql": ("sql_command", "Run a read-only SQL query on the jobs and their trees."),
    "psql": ("sql_command", "Open psql on the database, or print its URL."),
    "verify": ("audit_commands", "Check that nothing stored was changed; else name the row."),
    "anchor": ("audit_commands", "Print the head of the chain of hashes, to keep elsewhere."),
    "export": ("audit_commands", "Write jobs, trees and tokens to files, or send traces."),
    "dataset": ("dataset_commands", "Data sets for training: from traces, filter, mix, trace."),
    "redact": ("audit_commands", "Permanently replace the texts of jobs with salted hashes."),
    "archive": ("audit_commands", "Move months of trees to Parquet files with their proofs."),
    "model": ("model_commands", "Models for the embedded engine: list, get, use, remove."),
    "eval": ("evaluation_commands", "Run a set of problems and report accuracy and cost."),
    "calibrate": ("evaluation_commands", "Measure a model on a few questions, write its profile."),
    "profile": ("model_commands", "Model profiles: list them, show one."),
    "replay": ("evaluation_commands", "Generate a job again and compare, or rescore stored trees."),
    "worker": ("service_commands", "Run a worker that answers submitted jobs."),
    "scheduler": ("service_commands", "Publish due jobs, recover lost ones, expire late ones."),
    "up": ("service_commands", "Start the embedded Postgres and Redis."),
    "down": ("service_commands", "Stop the embedded Postgres and Redis."),
    "migrate": ("service_commands", "Bring the database to this version's schema."),
    "roles": ("service_commands", "Create the database's roles: owner, app, auditors."),
    "doctor": ("service_commands", "Report what is reachable, what is wrong, and how to fix it."),
}

BAD_INPUT = 2
BUG = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED = 130  # 128 + SIGINT, as shells have it

# What click calls a type in "is not a valid TYPE", and what people call it.
_PLAIN = {"float": "number", "integer": "whole number", "UUID": "full id"}
_TYPE = re.compile(rf"is not a valid ({'|'.join(_PLAIN)})(?: range)?")

EXIT_CODES = """\b
Exit codes:
  0    done
  1    another error
  2    bad input: arguments, a job, a file, a setting, a query, a login without the right
  3    no such job
  4    Postgres, Redis or a download fails, or the database has another schema
  5    the model or its server failed
  6    a wait timed out: the jobs continue
  7    a job that was waited for did not succeed
  8    too much is queued: nothing was stored, submit later
  9    verify: a stored row does not match; replay: another tree
  10   replay: another tree, but on another engine or kind of processor
  70   a bug in marco: the message says where its traceback is
  130  interrupted (Ctrl-C)"""


class LazyGroup(click.Group):
    """Imports a command's module when the command is used, not to list it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands' names, in the order in which help shows them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, or None."""
        if cmd_name not in COMMANDS:
            return None
        with loading():
            module = importlib.import_module(f"marco_search.cli.{COMMANDS[cmd_name][0]}")
        return cast(click.Command, getattr(module, cmd_name))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it; what is meant is looked for among all commands."""
        try:
            return super().resolve_command(ctx, args)
        except click.exceptions.NoSuchCommand as error:
            meant = click.exceptions.NoSuchCommand(error.command_name, None, COMMANDS, ctx)
            raise meant from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from COMMANDS, importing none of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={
        "help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True,
    },
    epilog=EXIT_CODES,
)  # fmt: skip
@click.version_option(__version__, package_name="marco-search")
def cli() -> None:
    """Answer jobs by Monte Carlo Tree Search and keep every tree in Postgres.

    Jobs, trees and tokens live in Postgres at DATABASE_URL; a queue in Redis at REDIS_URL wakes
    the workers. Without these variables both run embedded, with their data under MARCO_HOME
    (.marco): a command that needs them starts them, and stops them when it is done, unless
    `marco up` keeps them running.

    Every command takes --json: its output, and its errors on standard error, are then JSON.
    A JOB is named by its id or by a part of it: the beginning, or the end as tables show it.
    Where several are accepted, "-" reads them from standard input.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; see EXIT_CODES."""
    # Collecting garbage during imports took a tenth of the start.
    gc.set_threshold(20_000)
    words = list(sys.argv[1:] if arguments is None else arguments)
    end = words.index("--") if "--" in words else len(words)
    words, texts = words[:end], words[end:]  # what comes after "--" is no option
    as_json, debug = "--json" in words, "--debug" in words
    words = [word for word in words if word != "--debug"]
    if words[:1] == ["--json"] and len(words) > 1:  # a command's option, wherever it is given
        words.append(words.pop(0))
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    words += texts
    stdout = sys.stdout
    _prepare_streams()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = partial(_show_warning, as_json)
            outcome = cli.main(args=words, prog_name="marco", standalone_mode=False)
        sys.stdout.flush()
        return outcome if isinstance(outcome, int) else 0
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.ClickException as error:
        return _report_usage(error, as_json)
    except (KeyboardInterrupt, click.Abort):
        return _report_interrupted(as_json)
    except (BrokenPipeError, SystemExit) as error:
        # The reader (head, less) has closed the pipe. Rich and click exit with 1 then; click has
        # replaced this stream.
        if isinstance(error, SystemExit) and not (
            isinstance(error.__context__, BrokenPipeError) or sys.stdout is not stdout
        ):
            raise
        # Nothing may be written at exit, either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
        return 0
    except Exception as error:
        # File names may be any bytes; Python decodes those that are not UTF-8 as lone surrogates.
        if isinstance(error, UnicodeEncodeError) and re.search("[\\ud800-\\udfff]", "".join(words)):
            return _report_usage(click.UsageError("An argument is not valid UTF-8."), as_json)
        # Ctrl-C during the import of a library may surface as another error.
        if "KeyboardInterrupt" in "".join(traceback.format_exception(error)):
            return _report_interrupted(as_json)
        return _report_error(error, as_json, debug)


def _tell(text: str) -> None:
    """Print to standard error. If it is closed, the exit code has to do."""
    with suppress(OSError):
        print(text, file=sys.stderr)


def _report_interrupted(as_json: bool) -> int:
    if as_json:
        return _report("Interrupted", "interrupted", INTERRUPTED, as_json)
    _tell("Interrupted.")
    return INTERRUPTED


def _show_warning(as_json: bool, message: Warning | str, *_: object) -> None:
    """As our notices are, without a place in the code."""
    text = redacted(str(message))
    line = json.dumps({"notice": text}, ensure_ascii=False) if as_json else f"marco: {text}"
    _tell(escaped(line))


def _prepare_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A character that a terminal can't show becomes a question mark, not a traceback.
            stream.reconfigure(errors="replace")
    own = os.environ.get("PYTHONIOENCODING")
    if isinstance(sys.stdout, io.TextIOWrapper) and not (own or sys.stdout.isatty()):
        sys.stdout.reconfigure(encoding="utf-8")
    if os.environ.get("COLUMNS") == "0":  # of a terminal without a size: nothing would fit
        del os.environ["COLUMNS"]


def _report_usage(error: click.ClickException, as_json: bool) -> int:
    """Report arguments that click refused: the reason, and how the command is used."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):  # its message is the whole help
        if not as_json:
            _tell(error.format_message())
            return BAD_INPUT
        error = click.UsageError("Missing command.", error.ctx)
    message = error.format_message().rstrip(".").replace(". Did you mean", "; did you mean")
    message = _TYPE.sub(lambda found: f"is not a {_PLAIN[found[1]]}", message)
    if message[1:2].islower():  # click's sentences, as all our messages begin
        message = message[0].lower() + message[1:]
    if isinstance(error, click.NoSuchOption) and error.option_name[1:2].isdigit():
        message += '; a number is 0 or more, and a text that begins with "-" goes after "--"'
    _report("UsageError", message, BAD_INPUT, as_json)
    context = getattr(error, "ctx", None)
    if context is not None and not as_json:
        _tell(f"{context.get_usage()}\n`{context.command_path} --help` says more")
    return BAD_INPUT


def _report_error(error: Exception, as_json: bool, debug: bool) -> int:
    """Report a deliberate error, whose message says what to do, or else a bug."""
    trace = redacted("".join(traceback.format_exception(error)))
    if debug:
        _tell(escaped(trace))
    name, more = type(error).__name__, dict[str, Any]()
    full = isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT, EFBIG, EIO)
    if isinstance(error, OSError) and error.strerror and (error.filename or full):
        # A named file can't be read or written, or the disk is full.
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        code = 1 if full else BAD_INPUT
        return _report(name, f"{where}{error.strerror}", code, as_json)
    if isinstance(error, FileNotFoundError) and not error.filename:  # of os.getcwd()
        message = "the current folder was removed: change to one that exists"
        return _report(name, message, BAD_INPUT, as_json)
    if not isinstance(error, MarcoError):
        kept = None if debug else _kept(trace)
        where = f"is in {kept}; --debug prints it" if kept else "is above"
        if not kept and not debug:
            _tell(escaped(trace))
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
    _tell(escaped(text))
    return code


def _kept(trace: str) -> str | None:
    """The file that has the traceback; None if none can be written."""
    # Not under MARCO_HOME: what is broken may be just that. mkstemp's file is the user's own.
    try:
        handle, path = tempfile.mkstemp(prefix="marco-", suffix=".traceback.txt")
        with os.fdopen(handle, "w", errors="replace") as file:
            file.write(trace)
    except OSError:
        return None
    return path


if __name__ == "__main__":
    sys.exit(main())
