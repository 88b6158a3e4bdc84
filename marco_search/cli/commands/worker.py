"""`marco worker`: answers submitted jobs."""

from __future__ import annotations

import click

from marco_search.cli.output import json_option


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
@click.option("--check", is_flag=True, help="Only see whether this worker takes messages.")
@json_option
def worker(concurrency: int | None, name: str, check: bool, as_json: bool) -> None:
    """Run a worker that answers submitted jobs, until Ctrl-C or SIGTERM.

    It then takes no more jobs, finishes and keeps the rounds it is at (for MARCO_STOP_S seconds
    at most) and gives its jobs back: another worker goes on with them at once. SIGQUIT does the
    same in a few seconds. It logs to standard error; --json changes only how an error is told.

    --check starts nothing: it fails if the worker of this name and machine has not been heard of
    for 15 seconds (for the health check of a container).
    """
    from marco_search.cli.session import session
    from worker.main import run

    del as_json
    if check:
        _check(name)
        return
    # The session keeps embedded services alive as long as the worker runs.
    with session(starts_afresh=True) as here:
        code = run(here.settings, processes=concurrency, name=name)
    if code:
        click.get_current_context().exit(code)


def _check(name: str) -> None:
    """Raises BrokerUnavailable if the worker is not there."""
    import socket
    from contextlib import closing

    from marco_search import settings
    from marco_search.broker import Publisher
    from marco_search.errors import BrokerUnavailable
    from marco_search.locations import redis_url

    given, wanted = settings.load(), f"{name}@{socket.gethostname()}"
    with closing(Publisher(redis_url(given), given.queue)) as publisher:
        if wanted not in publisher.workers():
            raise BrokerUnavailable(f"worker {wanted}: not heard of for 15 s; see its log")
    click.echo(f"{wanted}: takes messages")
