"""`marco demo`: the whole way, once, with something to look at."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from marco_search.cli.failures import JOBS_NOT_DONE
from marco_search.cli.output import ascii_only, echo, json_option, print_json, show, terminal_width
from marco_search.cli.search_options import given_options, search_options

if TYPE_CHECKING:
    from marco_search.cli.demo import Figures, Shown
    from marco_search.store.reads.queries import JobStatus

# As right as 16 rollouts of `step` on these jobs, for a third of the tokens.
OPTIONS = {"strategy": "auto", "rollouts": 16}
TREE_NODES = 24
TIMEOUT_S = 600.0
QUESTION = "Tom has 3 boxes with 12 eggs each. Tom loses 7 eggs. How many eggs does Tom have now?"


@click.command(short_help="Answer the example jobs end to end.")
@click.argument("file", required=False)
@search_options
@click.option(
    "-c",
    "--concurrency",
    type=click.IntRange(min=1, max=64),
    default=2,
    show_default=True,
    metavar="N",
    help="Jobs run at once.",
)
@json_option
def demo(file: str | None, concurrency: int, as_json: bool, **values: Any) -> None:
    """Answer the jobs in FILE (default: examples/demo.jsonl) end to end.

    Starts Postgres and Redis (or uses DATABASE_URL and REDIS_URL), brings the schema up to
    date, starts a worker, submits the jobs, follows them, and shows the answers, one search
    tree, and three SQL queries. Everything it started is stopped at the end; the data stays.
    """
    from marco_search.cli import demo as steps
    from marco_search.cli.follow import follow
    from marco_search.cli.jsonl import read_jobs
    from marco_search.cli.session import session
    from marco_search.cli.worker_process import worker_process

    began = time.monotonic()
    say = _quiet if as_json else _say
    jobs = read_jobs(steps.example_file(file), OPTIONS | given_options(values))
    with session(starts_afresh=True, migrates=True) as here:
        say(f"Postgres and Redis answer after {time.monotonic() - began:.1f} s.")
        home = here.settings.home
        with worker_process(concurrency, home) as worker:
            batch_id, job_ids = steps.submit(here, jobs)
            say(f"{len(job_ids)} jobs submitted; a worker with {concurrency} processes runs.")
            with steps.cancelled_on_failure(here, job_ids):
                lines = follow(
                    here.database,
                    job_ids,
                    timeout_s=TIMEOUT_S,
                    on_change=_quiet if as_json else None,
                    before=worker.check,
                )
            shown = steps.look(here, batch_id, lines)
        found = steps.figures(lines, began)
        path = steps.write_figures(found, home)
    if as_json:
        jobs_json = [line.model_dump(mode="json") for line in lines]
        print_json(asdict(found) | {"batch_id": str(batch_id), "results": jobs_json})
    else:
        _report(lines, shown, found, path)
    if found.answered < found.jobs:
        click.get_current_context().exit(JOBS_NOT_DONE)


def _say(text: str) -> None:
    echo(text)


def _quiet(_: object) -> None:
    pass


def _report(lines: list[JobStatus], shown: Shown | None, found: Figures, path: Path) -> None:
    from rich.text import Text

    from marco_search.cli.render.jobs import jobs_table
    from marco_search.cli.render.rows import rows_table
    from marco_search.cli.render.text import one_line
    from marco_search.cli.render.tree import draw_tree

    width = terminal_width()
    show("", jobs_table(lines, width=width, with_state=False))
    if shown is not None:
        title = f"The search tree of {str(shown.line.job_id)[-8:]} (* the way to the answer)"
        tree = draw_tree(
            shown.tree, shown.winning_path, width=width, limit=TREE_NODES, ascii_only=ascii_only()
        )
        show("", Text(title, style="bold"), Text(one_line(shown.line.subject)), tree)
        for query, result in shown.queries:
            table = rows_table(result.columns, result.rows, width=width)
            show("", Text(query.title, style="bold"), Text(query.sql, style="dim"), "", table)
    right = f"{found.correct} of {found.checked} right, " if found.checked else ""
    show("", f"{found.answered} of {found.jobs} answered, {right}{found.nodes:,} nodes, "
         f"{found.tokens:,} tokens, {found.seconds:.1f} s. Figures: {path}")  # fmt: skip
    show("", Text(next_steps(own_name(), shown.line.job_id if shown else None)))


def own_name() -> str:
    """What to type to run this program again: as it was started, from here."""
    started = Path(sys.argv[0])
    if started.name != "marco" or not started.is_absolute():
        return "marco"
    try:
        return str(started.relative_to(Path.cwd()))
    except ValueError:
        return "marco"


def next_steps(marco: str, job_id: object) -> str:
    """Commands that work as they stand: the data is still there."""
    commands = ['sql "select count(*) from nodes"']
    if job_id is not None:
        commands.append(f"show {str(job_id)[-8:]} --full")
    commands += [
        f'solve "{QUESTION}" --tree',
        "up       # Postgres and Redis stay",
        "worker   # in another terminal",
        f"submit examples/batch.jsonl && {marco} watch",
    ]
    heading = "Nothing is left running; the data is kept. To look at it, and to go on:"
    return "\n".join([heading, *(f"  {marco} {command}" for command in commands)])
