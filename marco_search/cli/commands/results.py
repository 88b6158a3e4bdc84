"""`marco results`: what has come out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from marco_search.cli.output import json_option, print_json, print_json_line, show, terminal_width

if TYPE_CHECKING:
    from marco_search.jobs import JobResult
    from marco_search.store.db import Conn

AT_ONCE = 500  # results held in memory


@click.command(short_help="Print the results of jobs that have ended.")
@click.argument("jobs", metavar="[JOB]...", nargs=-1)
@click.option("--jsonl", is_flag=True, help="One JSON object on each line.")
@click.option("--thought", is_flag=True, help="With the answers' Thoughts (JSON).")
@json_option
def results(jobs: tuple[str, ...], jsonl: bool, thought: bool, as_json: bool) -> None:
    """Print the results of jobs that have ended: of those named, or of all, oldest first."""
    from marco_search.cli import reading
    from marco_search.cli.render.jobs import jobs_table
    from marco_search.cli.session import session
    from marco_search.store.reads import queries

    with session(needs_redis=False) as here, here.database.transaction() as conn:
        if jobs:
            ids = reading.find_jobs(conn, jobs, here.tenant)
        else:
            ids = reading.finished_jobs(conn, here.tenant)
        if jsonl:
            for result in _results(conn, ids):
                print_json_line(_plain(result, thought))
        elif as_json:
            print_json([_plain(result, thought) for result in _results(conn, ids)])
        else:
            lines = [line for line in queries.statuses(conn, ids) if line.final]
            show(jobs_table(lines, width=terminal_width()))


def _results(conn: Conn, ids: Sequence[UUID]) -> Iterator[JobResult]:
    """In the order of the ids; jobs that have not ended are left out."""
    from marco_search.store.reads import queries

    for start in range(0, len(ids), AT_ONCE):
        some = ids[start : start + AT_ONCE]
        found = {result.job_id: result for result in queries.results(conn, some)}
        yield from (found[str(job_id)] for job_id in some if str(job_id) in found)


def _plain(result: JobResult, thought: bool) -> dict[str, Any]:
    from marco_search.cli.render.result import drop_thoughts

    data = result.model_dump(mode="json")
    if not thought:
        drop_thoughts(data)
    return data
