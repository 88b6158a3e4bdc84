"""`marco status`: where jobs stand."""

from __future__ import annotations

from dataclasses import asdict

import click

from marco_search.cli.output import echo, json_option, print_json, show, terminal_width
from marco_search.cli.parameters import count

LATEST = 20
ALL = 2**31
# As in marco_search.store.queue.states, which is not imported only to be listed.
STATES = ("queued", "running", "succeeded", "failed", "dead", "cancelled", "expired")


@click.command(short_help="Say where jobs stand.")
@click.argument("jobs", metavar="[JOB]...", nargs=-1)
@click.option("--state", type=click.Choice(STATES), help="Only jobs in this state.")
@click.option(
    "--limit",
    type=count(),
    default=LATEST,
    show_default=True,
    metavar="N",
    help="Latest jobs listed where none is named; 0 for all.",
)
@json_option
def status(jobs: tuple[str, ...], state: str | None, limit: int, as_json: bool) -> None:
    """Say where jobs stand: those named, or the latest.

    \b
    States: queued, running, succeeded, failed (will not be tried again), dead (tried too
    often, or cost several workers), cancelled, expired (its deadline came first).
    """
    from marco_search.cli import reading
    from marco_search.cli.render.jobs import counts, jobs_table
    from marco_search.cli.session import session
    from marco_search.store.reads import queries

    with session(needs_redis=False) as here, here.database.transaction() as conn:
        if jobs:
            found = reading.find_jobs(conn, jobs, here.tenant)
            lines = queries.statuses(conn, found, tenant=here.tenant)
        else:
            newest = queries.recent(conn, tenant=here.tenant, state=state, limit=limit or ALL)
            lines = newest[::-1]
        by_state = reading.state_counts(conn, here.tenant)
        missing = queries.missing_models(conn, tenant=here.tenant)
    if as_json:
        jobs_json = [line.model_dump(mode="json") for line in lines]
        print_json(
            {
                "counts": by_state,
                "jobs": jobs_json,
                "missing_models": [asdict(model) for model in missing],
            }
        )
        return
    if lines:
        show(jobs_table(lines, width=terminal_width()), "")
    show(counts(by_state))
    for model in missing:
        echo(f"{model}: `marco requeue --restart` begins them anew")
