"""`marco pause` and `marco resume`: jobs that are to wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from marco_search.cli.output import echo, json_option, print_json

TENANT = click.option("--tenant", metavar="NAME", help="All jobs of this tenant.")
ALL = click.option("--all", "everything", is_flag=True, help="All jobs of all tenants.")


def _whom(command: Callable[..., Any]) -> Callable[..., Any]:
    named = click.argument("jobs", metavar="[JOB]...", nargs=-1)
    return named(TENANT(ALL(json_option(command))))


@click.command(short_help="Hold jobs back.")
@click.option("--list", "listed", is_flag=True, help="Only list what is paused.")
@_whom
def pause(
    jobs: tuple[str, ...], tenant: str | None, everything: bool, listed: bool, as_json: bool
) -> None:
    """Hold jobs back: those named, a tenant's, or all, also those submitted later.

    What is queued is not begun. A running job finishes its round, is given back by its worker
    and waits. Deadlines go on. `marco resume` lets them go on.
    """
    if listed:
        if jobs or tenant is not None or everything:
            raise click.UsageError("--list goes alone.")
        _list(as_json)
    else:
        _set(jobs, tenant, everything, as_json, paused=True)


@click.command(short_help="Let paused jobs go on.")
@_whom
def resume(jobs: tuple[str, ...], tenant: str | None, everything: bool, as_json: bool) -> None:
    """Let paused jobs go on: those named, a tenant's, or all.

    Each pause is ended by its like: a job that was paused by its id stays paused when its
    tenant is resumed.
    """
    _set(jobs, tenant, everything, as_json, paused=False)


def _list(as_json: bool) -> None:
    from marco_search.cli.session import session
    from marco_search.store.queue import holds

    with session(needs_redis=False) as here, here.database.transaction() as conn:
        found = holds.pauses(conn)
    if as_json:
        rows = [
            {
                "tenant": pause.tenant or None,
                "paused_at": pause.since and pause.since.isoformat(),
                "jobs": pause.jobs,
            }
            for pause in found
        ]
        print_json({"paused": rows})
        return
    for pause in found:
        whom = f"tenant {pause.tenant}" if pause.tenant else "all tenants"
        since = f"since {pause.since:%Y-%m-%d %H:%M:%S} UTC" if pause.since else ""
        jobs = f"{pause.jobs:,} job{'' if pause.jobs == 1 else 's'} by id" if pause.jobs else ""
        echo(f"{whom}: {', '.join(filter(None, [since, jobs]))}")
    if not found:
        echo("Nothing is paused.")


def _set(
    jobs: tuple[str, ...], tenant: str | None, everything: bool, as_json: bool, *, paused: bool
) -> None:
    if sum([bool(jobs), tenant is not None, everything]) != 1:
        raise click.UsageError("Give jobs, or --tenant NAME, or --all.")
    if tenant == "":  # an unset variable of a script, say: it must not mean everyone
        raise click.UsageError("--tenant is empty: give a name, or --all.")
    from marco_search.cli import reading
    from marco_search.cli.session import session
    from producer import EVERYONE, Producer

    done = "paused" if paused else "resumed"
    with session() as here, Producer(settings=here.settings) as producer:
        if not jobs:
            change = producer.pause_tenant if paused else producer.resume_tenant
            change(EVERYONE if everything else tenant)
            whom = "all tenants" if everything else f"tenant {tenant}"
            report = {done: whom}
            lines = [f"{done}: {whom}"]
        else:
            with here.database.transaction() as conn:
                ids = reading.find_jobs(conn, jobs, here.tenant)
            one = producer.pause if paused else producer.resume
            states = {str(job_id): str(one(job_id)) for job_id in ids}
            report = {"jobs": [{"job_id": i, "state": s} for i, s in states.items()]}  # type: ignore[dict-item]
            lines = [f"{job_id}  {_said(state, done)}" for job_id, state in states.items()]
    if as_json:
        print_json(report)
    else:
        echo("\n".join(lines))


def _said(state: str, done: str) -> str:
    if state == "running" and done == "paused":
        return "waits after its round"
    return done if state in ("queued", "running") else f"{state} already"
