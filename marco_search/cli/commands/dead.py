"""`marco dead`: the jobs that were given up, and how they get another chance."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING
from uuid import UUID

import click

from marco_search.cli.output import json_option, print_json, show, terminal_width
from marco_search.cli.parameters import count

if TYPE_CHECKING:
    from producer import Producer

STATE = click.option(
    "--state", type=click.Choice(("dead", "failed")), help="Only jobs in this state."
)
ERROR = click.option("--error", metavar="TYPE", help="Only those with this error (WorkerLost).")

RESTART = click.option("--restart", is_flag=True, help="Begin anew, as new jobs.")


@click.group(short_help="Jobs that were given up: list, show, requeue.")
def dead() -> None:
    """Jobs that were given up.

    Dead ones used up their attempts, or cost several workers (WorkerLost). Failed ones could
    not succeed as they were, or met a bug of ours.
    """


@dead.command("list", short_help="List them.")
@STATE
@ERROR
@click.option("--limit", type=count(least=1), default=100, show_default=True, metavar="N")
@json_option
def list_(state: str | None, error: str | None, limit: int, as_json: bool) -> None:
    """List the jobs that were given up, the latest first."""
    from marco_search.cli.render.dead_letters import letters_table
    from marco_search.cli.session import session
    from producer import Producer

    with session() as here, Producer(settings=here.settings, tenant=here.tenant) as producer:
        found = producer.dead_letters(state=state, error=error, limit=limit)
    if as_json:
        print_json({"jobs": [letter.model_dump(mode="json") for letter in found]})
    elif found:
        show(letters_table(found, width=terminal_width()))
    else:
        click.echo("No job was given up.")


@dead.command("show", short_help="Say why one was given up.")
@click.argument("job", metavar="JOB")
@json_option
def show_(job: str, as_json: bool) -> None:
    """Say why a job was given up: its last error, of a bug with the traceback."""
    from marco_search.cli import reading
    from marco_search.cli.render.dead_letters import letter_report
    from marco_search.cli.session import session
    from producer import Producer

    with session() as here, Producer(settings=here.settings, tenant=here.tenant) as producer:
        with here.database.transaction() as conn:
            job_id = reading.find_job(conn, job, here.tenant)
        letter = producer.dead_letter(job_id)
    if as_json:
        print_json(letter.model_dump(mode="json"))
    else:
        show(*letter_report(letter))


@dead.command(short_help="Queue them again.")
@click.argument("jobs", metavar="[JOB]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All, or those of --state and --error.")
@STATE
@ERROR
@RESTART
@json_option
def requeue(
    jobs: tuple[str, ...],
    everything: bool,
    state: str | None,
    error: str | None,
    restart: bool,
    as_json: bool,
) -> None:
    """Queue jobs again that were given up: those named, or --all.

    Each goes on from its last kept round, with fresh counters. A deadline that has passed is
    dropped. The audit log keeps what happened before.

    With --restart each begins anew instead, as a new job; see `marco requeue`.
    """
    if bool(jobs) == everything:
        raise click.UsageError("Give jobs, or --all.")
    if jobs and (state or error):
        raise click.UsageError("--state and --error go with --all.")
    from marco_search.cli import reading
    from marco_search.cli.commands.requeue import report
    from marco_search.cli.session import session
    from producer import Producer

    with session() as here, Producer(settings=here.settings, tenant=here.tenant) as producer:
        if jobs:
            with here.database.transaction() as conn:
                wanted = reading.find_jobs(conn, jobs, here.tenant)
            for job_id in wanted:
                producer.dead_letter(job_id)  # raises for one that was not given up
            batches: Iterable[list[UUID]] = [wanted]
        else:
            batches = _given_up(producer, state, error)
        done: dict[UUID, UUID] = {}  # job to the one that goes on
        for batch in batches:
            done |= producer.restart(batch) if restart else {i: i for i in producer.requeue(batch)}
    report(done, restarted=restart, as_json=as_json)


def _given_up(producer: Producer, state: str | None, error: str | None) -> Iterator[list[UUID]]:
    """Those that are left, until none is."""
    while letters := producer.dead_letters(state=state, error=error, limit=500):
        yield [letter.job_id for letter in letters]
