"""`marco submit`: jobs from a file, or one from the command line."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Any

import click

from marco_search.cli.output import console, echo, json_option, print_json
from marco_search.cli.search_options import (
    given_options,
    job_from_options,
    kind_options,
    search_options,
)


@click.command(short_help="Submit jobs.")
@click.argument("file", required=False)
@click.option("--question", metavar="TEXT", help="Submit this one instead of a file.")
@click.option("--priority", metavar="LEVEL", help="low, normal (default) or high.")
@click.option("--deadline", metavar="TIME", help="Not searched any more after it: ISO 8601, zone.")
@click.option("--expires-in", "expires_in_s", type=float, metavar="S", help="The same, from now.")
@click.option("--wait", is_flag=True, help="Where too much is queued, wait and try again.")
@kind_options
@search_options
@json_option
def submit(
    file: str | None, question: str | None, wait: bool, as_json: bool, **values: Any
) -> None:
    """Submit the jobs in FILE, a JSON Lines file ("-": standard input), and print their ids.

    The whole file is checked first: if any line is wrong, all wrong lines are reported and
    nothing is submitted. Search options, priority and deadline given here fill in what a line
    leaves open; the options about the kind of job go with --question.

    \b
    {"kind": "reasoning", "question": "What is 17 x 23?", "expected": "391"}
    {"kind": "translation", "text": "...", "source": "zh", "target": "en"}
    {"kind": "open_ended", "prompt": "...", "options": {"rollouts": 8}}
    """
    from marco_search.cli.jsonl import read_jobs
    from marco_search.cli.session import session

    if (file is None) == (question is None):
        raise click.UsageError("Give a FILE, or a question with --question.")
    if question is not None:
        jobs = [job_from_options(question, values)]
    else:
        assert file is not None
        _refuse_kind_options()
        jobs = read_jobs(file, given_options(values))
    from marco_search.cli.submitting import submitted, with_terms
    from producer import Producer

    jobs = [with_terms(job, values) for job in jobs]
    with session(starts_afresh=True) as here, Producer(settings=here.settings) as producer:
        handles = submitted(producer, jobs, wait=wait)
    ids = [str(handle.id) for handle in handles]
    known = [str(handle.id) for handle in handles if not handle.created]
    new = len(ids) - len(known)
    if as_json:
        print_json({"ids": ids, "submitted": new, "known": known})
        return
    echo("\n".join(ids))
    said = f"{new:,} new, {len(known):,} known"
    now = datetime.now(UTC)
    if past := sum(1 for job in jobs if job.deadline is not None and job.deadline < now):
        said += f"; {past:,} with a deadline that has passed, which only expire"
    if new and sys.stderr.isatty():
        said += ". `marco worker` answers them, `marco watch` follows"
    console(stderr=True).print(f"{said}.", style="dim")


def _refuse_kind_options() -> None:
    context = click.get_current_context()
    for name in ("kind", "source", "target", "style", "expected"):
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            raise click.UsageError(f"--{name} goes with --question: a file's lines carry it.")
