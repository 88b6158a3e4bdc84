"""`marco watch` and `marco wait`: until jobs end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from uuid import UUID

import click

from marco_search.cli.failures import JOBS_NOT_DONE
from marco_search.cli.output import json_option, print_json, print_json_line, show, terminal_width
from marco_search.cli.parameters import Seconds

if TYPE_CHECKING:
    from marco_search.cli.session import Session
    from marco_search.store.reads.queries import JobStatus

timeout_option = click.option(
    "--timeout",
    type=Seconds(min=0),
    metavar="S",
    help="Give up after S seconds (exit code 6); the jobs go on.",
)


@click.command(short_help="Follow jobs live until they end.")
@click.argument("jobs", metavar="[JOB]...", nargs=-1)
@timeout_option
@json_option
def watch(jobs: tuple[str, ...], timeout: float | None, as_json: bool) -> None:
    """Follow jobs live until they end: those named, or all that have not ended.

    Without a terminal each change of a job's state is a line; with --json, a JSON line.
    Exits with 7 if a job did not succeed.
    """
    from marco_search.cli.follow import follow
    from marco_search.cli.render.progress import progress
    from marco_search.cli.session import session

    def json_line(line: JobStatus) -> None:
        print_json_line(line.model_dump(mode="json"))

    with session(needs_redis=False) as here:
        job_ids = _jobs(here, jobs)
        on_change = json_line if as_json else None
        lines = follow(here.database, job_ids, timeout_s=timeout, on_change=on_change)
    if not as_json:
        show(progress(lines) if lines else "No job is queued or running.")
    _exit(lines)


@click.command(short_help="Wait quietly until jobs end.")
@click.argument("jobs", metavar="[JOB]...", nargs=-1)
@timeout_option
@json_option
def wait(jobs: tuple[str, ...], timeout: float | None, as_json: bool) -> None:
    """Wait quietly until jobs end, those named or all, then print where they stand.

    Exits with 7 if a job did not succeed, with 6 after --timeout.
    """
    from marco_search.cli.render.jobs import jobs_table
    from marco_search.cli.session import session
    from marco_search.store.reads import queries
    from producer import Producer

    with session() as here:
        job_ids = _jobs(here, jobs)
        with Producer(settings=here.settings) as producer:
            producer.wait(job_ids, timeout)
        with here.database.transaction() as conn:
            lines = queries.statuses(conn, job_ids)
    if as_json:
        print_json({"jobs": [line.model_dump(mode="json") for line in lines]})
    elif lines:
        show(jobs_table(lines, width=terminal_width()))
    else:
        show("No job is queued or running.")
    _exit(lines)


def _jobs(here: Session, words: Sequence[str]) -> list[UUID]:
    """The jobs named, or all of the tenant's that have not ended."""
    from marco_search.cli import reading

    with here.database.transaction() as conn:
        if words:
            return list(dict.fromkeys(reading.find_jobs(conn, words, here.tenant)))
        return reading.unfinished_jobs(conn, here.tenant)


def _exit(lines: Sequence[JobStatus]) -> None:
    if any(line.state != "succeeded" for line in lines):
        click.get_current_context().exit(JOBS_NOT_DONE)
