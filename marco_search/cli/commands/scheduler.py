"""`marco scheduler`: looks after the queue."""

from __future__ import annotations

import click

from marco_search.cli.output import json_option


@click.command(short_help="Look after the queue.")
@json_option
def scheduler(as_json: bool) -> None:
    """Look after the queue until Ctrl-C or SIGTERM.

    Publishes jobs that became due, takes jobs back from workers that are gone, and ends jobs
    whose deadline has passed. Workers do the same unless MARCO_WORKER_SWEEPS=false, so a small
    set-up needs none. Several may run. It logs to standard error.
    """
    from marco_search.cli.session import session
    from worker.scheduler import run

    del as_json
    with session(starts_afresh=True) as here:
        code = run(here.settings)
    if code:
        click.get_current_context().exit(code)
