"""`marco requeue`: begin jobs anew whose model nobody has any more."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

import click

from marco_search.cli.output import json_option, print_json


@click.command(short_help="Begin jobs anew.")
@click.argument("jobs", metavar="[JOB]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that wait for a model.")
@click.option("--restart", is_flag=True, help="Begin anew. Must be given.")
@json_option
def requeue(jobs: tuple[str, ...], everything: bool, restart: bool, as_json: bool) -> None:
    """Begin jobs anew, with --restart: those named, or all that wait for a model.

    A job goes on with the model and revision it was begun on only, and waits for a worker that
    has it; `marco status` says how many do. Begun anew it is a new job, with the same request,
    on the model that workers have now. The old one is cancelled and keeps its answers and its
    trail; the audit log of each names the other. Jobs that were given up can be named, too.
    """
    if not restart:
        raise click.UsageError(
            "Give --restart: a job begins anew. `marco dead requeue` lets one that was given up "
            "go on from its last round."
        )
    if bool(jobs) == everything:
        raise click.UsageError("Give jobs, or --all.")
    from marco_search.cli import reading
    from marco_search.cli.session import session
    from producer import Producer

    with session() as here, Producer(settings=here.settings, tenant=here.tenant) as producer:
        done: dict[UUID, UUID] = {}
        if jobs:
            with here.database.transaction() as conn:
                wanted = reading.find_jobs(conn, jobs, here.tenant)
            done = producer.restart(wanted)
        else:
            while waiting := producer.waiting_for_model():
                done |= producer.restart(waiting)
    report(done, restarted=True, as_json=as_json)


def report(done: Mapping[UUID, UUID], *, restarted: bool, as_json: bool) -> None:
    """Print what was done: each job, and the new one it goes on as."""
    ids = {str(old): str(new) for old, new in done.items()}
    word = "restarted" if restarted else "requeued"
    if as_json:
        print_json({word: ids if restarted else list(ids)})
        return
    lines = [f"{old}  restarted as {new}" if restarted else old for old, new in ids.items()]
    click.echo("\n".join([*lines, f"{len(ids)} {word}"]))
