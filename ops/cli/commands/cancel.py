"""`marco cancel`: jobs that are not wanted any more."""

from __future__ import annotations

import click

from ops.cli.output import json_option, print_json


@click.command(short_help="Cancel jobs.")
@click.argument("jobs", metavar="JOB...", nargs=-1, required=True)
@json_option
def cancel(jobs: tuple[str, ...], as_json: bool) -> None:
    """Cancel jobs. All are found before any is cancelled.

    A queued job is cancelled at once, a running one within two seconds, with the answers of
    the rounds it has kept. One that has ended stays as it is.
    """
    from ops.cli import reading
    from ops.cli.session import session
    from producer import Producer

    with session() as here:
        with here.database.transaction() as conn:
            ids = reading.find_jobs(conn, jobs, here.tenant)
        with Producer(settings=here.settings) as producer:
            states = {str(job_id): str(producer.cancel(job_id)) for job_id in ids}
    if as_json:
        print_json({"jobs": [{"job_id": i, "state": state} for i, state in states.items()]})
        return
    for job_id, state in states.items():
        text = "stops within two seconds" if state == "running" else state
        click.echo(f"{job_id}  {text}")
