"""`marco cancel`: jobs that are not wanted any more."""

from __future__ import annotations

import sys
from uuid import UUID

import click

from marco_search.cli.output import echo, json_option, print_json

_SOON = {
    "running": "stops within two seconds",
    "queued": "ends within two seconds, with the answers of its rounds",
}


@click.command(short_help="Cancel jobs.")
@click.argument("jobs", metavar="[JOB]...", nargs=-1)
@click.option("--batch", type=click.UUID, metavar="ID", help="All jobs of this batch.")
@click.option("--tenant", metavar="NAME", help="All jobs of this tenant.")
@click.option(
    "--state", type=click.Choice(("queued", "running")), help="All jobs in this state, or of these."
)
@click.option("--all", "everything", is_flag=True, help="All jobs of all tenants.")
@click.option("--yes", is_flag=True, help="Do not ask before --all.")
@json_option
def cancel(
    jobs: tuple[str, ...],
    batch: UUID | None,
    tenant: str | None,
    state: str | None,
    everything: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Cancel jobs: those named, or all that fit the options. "-" reads ids from standard input.

    A queued job is cancelled at once, a running one within two seconds, with the answers of
    the rounds it has kept. One that has ended stays as it is. Named jobs are all found before
    any is cancelled. --batch and --state look among the jobs of --tenant, else of MARCO_TENANT,
    or with --all of all tenants.
    """
    if bool(jobs) == (everything or (batch, tenant, state) != (None, None, None)):
        raise click.UsageError("Give jobs, or --batch, --tenant, --state or --all.")
    if tenant == "":  # an unset variable of a script, say: it must not mean everyone
        raise click.UsageError("--tenant is empty: give a name, or --all.")
    if tenant is not None and everything:
        raise click.UsageError("Give either --tenant or --all.")
    if everything and not yes and sys.stdin.isatty():
        click.confirm("Cancel jobs of all tenants?", abort=True, err=True)
    from marco_search.cli import reading
    from marco_search.cli.session import session
    from marco_search.store.queue.states import JobState
    from producer import EVERYONE, Producer

    with session() as here, Producer(settings=here.settings) as producer:
        if jobs:
            with here.database.transaction() as conn:
                ids = reading.find_jobs(conn, jobs, here.tenant)
            found = producer.cancel_many(ids)
        else:
            found = producer.cancel_all(
                tenant=EVERYONE if everything else tenant,
                batch_id=batch,
                state=JobState(state) if state else None,
            )
    if as_json:
        print_json({"jobs": [{"job_id": str(i), "state": str(s)} for i, s in found.items()]})
        return
    for job_id, now in found.items() if jobs else ():
        echo(f"{job_id}  {_SOON.get(now, now)}")
    if not jobs:
        soon = sum(now in _SOON for now in found.values())
        rest = f", {soon} end within two seconds" if soon else ""
        echo(f"{len(found) - soon} cancelled{rest}")
