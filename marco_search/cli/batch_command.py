"""`marco batch`: a file of requests as one piece of work."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from marco_search.cli import job_input, options, output
from marco_search.cli.job_text import counts, result_json
from marco_search.cli.session import session
from marco_search.errors import WaitTimeout
from marco_search.kinds import completions
from marco_search.text import counted

if TYPE_CHECKING:
    from marco_search.store.queue.batches import Batch, BatchLine
    from producer import Producer

EVERY_S = 1.0
_SUBMIT = "marco batch submit"


@options.group()
def batch() -> None:
    """Files of requests: submit one, and pick up the results line by line."""


@batch.command("submit", short_help="Submit a file.")
@click.argument("file")
@click.option("--batch", "batch_id", type=click.UUID, metavar="ID", help="Resume this batch.")
@click.option("--strict", is_flag=True, help="If a line is wrong, submit nothing.")
@click.option("--wait", "waits", is_flag=True, help="If too much is queued, wait and continue.")
@click.option("--errors", type=options.FILE, metavar="FILE",
              help="Where refused lines are written [default: FILE.errors.jsonl]")  # fmt: skip
@job_input.search_options
def submit_batch(
    file: str, batch_id: UUID | None, strict: bool, waits: bool, errors: Path | None, **values: Any
) -> None:
    """Submit FILE ("-": standard input) as a batch and print its id.

    Each line is a job (as in `marco submit`) or a request in OpenAI's batch format, detected line
    by line. Invalid lines are refused, with their number and the reason in the error file; the rest
    is submitted. An interrupted upload resumes when the same file is submitted again.

    \b
    {"custom_id": "a", "kind": "reasoning", "question": "What is 17 x 23?"}
    {"custom_id": "b", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [...]}}
    """
    given = job_input.given_options(values)
    piped = file == "-" or Path(file).is_fifo()
    path = None if piped else Path(file).absolute()
    source = None if path is None else os.fsencode(path).decode(errors="backslashreplace")
    if piped and strict:
        raise click.UsageError("--strict reads the file twice: not with standard input or a pipe.")
    with session(creates=True) as here:
        if strict:
            with job_input.opened(file, _SUBMIT) as lines:
                for _ in job_input.checked(lines, file, given):
                    pass
        with job_input.opened(file, _SUBMIT) as lines:
            producer = here.producer()
            done = producer.submit_batch(
                lines, source=source, batch_id=batch_id, options=given, waits=waits, begun=_begun
            )
        refused = producer.refused_lines(done.id)
        where = errors or Path(f"{path or done.id}.errors.jsonl")
        if refused:
            output.write_json_lines(where, map(_refusal, refused))
    refusal = f"{len(refused):,} of {done.lines:,} lines were refused: {where}"
    output.report(done, str(done.id), notices=[refusal] if refused else [])


def _begun(found: Batch) -> None:
    if not output.as_json() and found.lines:
        output.note(f"Batch {found.id}: continues after line {found.lines:,}.")


@batch.command("status", short_help="Show where batches stand.")
@click.argument("batch_id", metavar="[ID]", type=click.UUID, required=False)
@options.tenants
@click.option("--limit", type=options.count(least=1), default=20, metavar="N")
def show_status(batch_id: UUID | None, limit: int) -> None:
    """Show the status of a batch, or of the latest ones."""
    with session(needs_redis=False) as here:
        producer = here.producer(here.tenant)
        found = [producer.batch(batch_id)] if batch_id else producer.batches(limit=limit)
        notices = producer.standstill(batch_id=batch_id) if batch_id else {}
    output.report(
        asdict(found[0]) | {"notices": notices} if batch_id else {"batches": found},
        "\n".join(map(_line, found)) or "No batch was submitted.",
        notices=notices.values(),
    )


@batch.command("watch", short_help="Follow one until its jobs have ended.")
@click.argument("batch_id", metavar="ID", type=click.UUID)
@options.tenants
@click.option("--timeout", type=options.Finite(min=0), metavar="S", help="Give up after S seconds.")
def watch_batch(batch_id: UUID, timeout: float | None) -> None:
    """Print a line whenever a batch has progressed; exits with 7 if a job did not succeed."""
    follow(batch_id, timeout, quiet=False)


def follow(batch_id: UUID, timeout: float | None, *, quiet: bool) -> None:
    """Follow a batch until its jobs have ended; `quiet`: print only where it stands then.

    Exits with 7 if a job did not succeed. Raises WaitTimeout.
    """
    from producer.waits import Watch

    until = None if timeout is None else time.monotonic() + timeout
    shown, watch = dict[str, int](), Watch()
    with session(needs_redis=False) as here:
        producer = here.producer(here.tenant)
        while True:
            began = time.monotonic()
            found = producer.batch(batch_id)
            if found.states != shown and not (quiet and found.left):
                output.report(found, _line(found))
            shown = found.states
            if not found.left:
                break
            if until is not None and time.monotonic() >= until:
                raise WaitTimeout(f"{found.left:,} jobs of batch {batch_id} have not ended")
            watch.look(lambda: producer.standstill(batch_id=batch_id))
            # Counting a large batch takes a while: not more than a quarter of the time.
            time.sleep(max(EVERY_S, 3 * (time.monotonic() - began)))
    if shown.keys() - {"succeeded"}:
        click.get_current_context().exit(output.JOBS_NOT_DONE)


@batch.command("results", short_help="Print the results, line by line.")
@click.argument("batch_id", metavar="ID", type=click.UUID)
@options.tenants
@options.file_option
@click.option("--errors", is_flag=True, help="Print the refused lines instead, with the reasons.")
@click.option("--thought", is_flag=True, help="Include the answers' thoughts.")
@options.question_option
def print_results(
    batch_id: UUID, file: Path | None, errors: bool, thought: bool, question: bool
) -> None:
    """Print the results of the jobs of a batch that have ended, in line order.

    One JSON object per line, in OpenAI's format for OpenAI requests, else in our own.
    """
    with session(needs_redis=False) as here:
        producer = here.producer(here.tenant)
        lines: Iterable[dict[str, Any]]
        if errors:
            lines = map(_refusal, producer.refused_lines(batch_id))
        else:
            lines = _results(producer, batch_id, thought=thought, question=question)
        output.print_or_write(file, lines)


def _results(
    producer: Producer, batch_id: UUID, *, thought: bool, question: bool
) -> Iterator[dict[str, Any]]:
    for result in producer.batch_results(batch_id):
        if result.endpoint == completions.ENDPOINT:
            yield completions.response(result)
        else:
            yield result_json(result, thought=thought, question=question)


@batch.command("cancel", short_help="Cancel what has not ended.")
@click.argument("batch_id", metavar="ID", type=click.UUID)
def cancel_batch(batch_id: UUID) -> None:
    """Cancel the jobs of a batch that have not ended; `marco batch restart` runs them again."""
    with session() as here:
        producer = here.producer()
        whose = producer.batch(batch_id).tenant
        count = len(producer.cancel_all(tenant=whose, batch_id=batch_id))
    output.report({"cancelled": count}, f"{count:,} cancelled")


@batch.command("restart", short_help="Restart what did not succeed.")
@click.argument("batch_id", metavar="ID", type=click.UUID)
def restart_batch(batch_id: UUID) -> None:
    """Restart the jobs of a batch that were cancelled, expired, failed or are dead.

    Each line gets a new job, whose result replaces the old one. The old jobs keep their trail.
    """
    with session() as here:
        count = here.producer().restart_batch(batch_id)
    output.report({"restarted": count}, f"{count:,} restarted")


def _line(found: Batch) -> str:
    refused = f"; {counted(found.refused, 'line')} refused" if found.refused else ""
    upload = "" if found.completed_at else f"; upload stopped after line {found.lines:,}"
    return f"{found.id}  {counts(found.states)}{refused}{upload}"


def _refusal(line: BatchLine) -> dict[str, Any]:
    return {n: getattr(line, n) for n in ("line", "custom_id", "field", "reason")}
