"""`marco worker`: answers submitted jobs."""

from __future__ import annotations

import click

from ops.cli.output import json_option


@click.command(short_help="Run a worker.")
@click.option(
    "-c",
    "--concurrency",
    type=click.IntRange(min=1, max=256),
    metavar="N",
    help="Jobs run at once, each in a process (default: MARCO_WORKER_PROCESSES, else 1).",
)
@click.option(
    "--name",
    default="celery",
    show_default=True,
    metavar="NAME",
    help="Tells workers on one machine apart.",
)
@json_option
def worker(concurrency: int | None, name: str, as_json: bool) -> None:
    """Run a worker that answers submitted jobs, until Ctrl-C or SIGTERM.

    It then takes no more jobs, finishes and keeps the rounds it is at (for MARCO_STOP_S seconds
    at most) and gives its jobs back: another worker goes on with them at once. SIGQUIT does the
    same in a few seconds. It logs to standard error; --json changes only how an error is told.
    """
    from ops.cli.session import session
    from worker.main import run

    del as_json
    # The session keeps embedded services alive as long as the worker runs.
    with session(starts_afresh=True) as here:
        code = run(here.settings, processes=concurrency, name=name)
    if code:
        click.get_current_context().exit(code)
