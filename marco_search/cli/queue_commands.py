"""Commands about the queue: pause, resume, quota, dead (list, show, requeue), requeue."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING
from uuid import UUID

import click

from marco_search.cli import options, output
from marco_search.cli.job_text import LETTERS, letter_report
from marco_search.cli.session import session
from marco_search.errors import JobNotFound
from marco_search.store.queue import tenants
from marco_search.text import counted

if TYPE_CHECKING:
    from producer import Producer

state_option = click.option(
    "--state", type=click.Choice(("dead", "failed")), help="Only jobs in this state."
)
error_option = click.option(
    "--error", metavar="TYPE", help="Only those with this error (WorkerLost)."
)


@options.command()
@click.option("--list", "listed", is_flag=True, help="Only list what is paused.")
@options.jobs_to_change
def pause(jobs: tuple[str, ...], tenant: str | None, everything: bool, listed: bool) -> None:
    """Pause jobs: those named, a tenant's, or all, including those submitted later.

    Queued jobs are not started. A running job finishes its round and is released by its worker.
    Deadlines still apply. `marco resume` resumes them.
    """
    if not listed:
        _set_paused(jobs, tenant, everything, paused=True)
    elif jobs or options.chosen_batch(jobs) or tenant is not None or everything:
        raise click.UsageError("--list goes alone.")
    else:
        _list_pauses()


@options.command()
@options.jobs_to_change
def resume(jobs: tuple[str, ...], tenant: str | None, everything: bool) -> None:
    """Resume paused jobs: those named, a tenant's, or all.

    Each pause is ended by its like: a job that was paused by its id stays paused when its
    tenant is resumed.
    """
    _set_paused(jobs, tenant, everything, paused=False)


def _list_pauses() -> None:
    with session(needs_redis=False) as here, here.database.transaction() as conn:
        found = tenants.pauses(conn)
    rows, lines = [], []
    for pause in found:
        since = pause.since.isoformat() if pause.since else None
        rows.append({"tenant": pause.tenant or None, "paused_at": since, "jobs": pause.jobs})
        parts = [f"since {pause.since:%F %T} UTC"] if pause.since else []
        if pause.jobs:
            parts.append(f"{counted(pause.jobs, 'job')} by id")
        whose = f"tenant {pause.tenant}" if pause.tenant else "all tenants"
        lines.append(f"{whose}: {', '.join(parts)}")
    output.report({"paused": rows}, "\n".join(lines) or "Nothing is paused.")


def _set_paused(
    jobs: tuple[str, ...], tenant: str | None, everything: bool, *, paused: bool
) -> None:
    named = bool(jobs or options.chosen_batch(jobs))
    if everything is (named or tenant is not None):
        raise click.UsageError("Give jobs, or --tenant NAME, or --all.")
    from producer import EVERYONE

    done = "paused" if paused else "resumed"
    with session() as here:
        producer = here.producer()
        if not named:
            change = producer.pause_tenant if paused else producer.resume_tenant
            change(EVERYONE if everything else tenant)
            whose = "all tenants" if everything else f"tenant {tenant}"
            output.report({done: whose}, f"{done}: {whose}")
            return
        one = producer.pause if paused else producer.resume
        states = {job_id: one(job_id) for job_id in here.find(jobs)}
    now = {"queued": done, "running": "waits after its round" if paused else done}
    output.report(
        {"jobs": [{"job_id": job_id, "state": state} for job_id, state in states.items()]},
        "\n".join(f"{i}  {now.get(state, f'{state} already')}" for i, state in states.items()),
    )


@options.command()
@click.argument("tenant", metavar="[TENANT]", required=False)
@click.argument("limit", metavar="[N|default]", required=False)
def quota(tenant: str | None, limit: str | None) -> None:
    """Limit TENANT to N queued jobs; "default": to MARCO_TENANT_MAX_QUEUED.

    Jobs already queued stay. Further jobs are refused with a hint when to retry. Without N: list
    the quotas, of all tenants or of TENANT.
    """
    if tenant is None or limit is None:
        _list_quotas(tenant)
        return
    if not tenant:
        raise click.UsageError("TENANT is empty.")
    if limit != "default" and not (limit.isdecimal() and int(limit[:12]) <= options.LARGEST_COUNT):
        raise click.UsageError(
            f'{limit!r} is not a number of jobs; give one, 0 or more, or "default".'
        )
    max_queued = None if limit == "default" else int(limit)
    with session(creates=True) as here:
        here.producer().set_quota(max_queued, tenant)
    now = "as the settings have it" if max_queued is None else max_queued
    output.report({"tenant": tenant, "max_queued": max_queued}, f"{tenant}: {now}")


def _list_quotas(tenant: str | None) -> None:
    with session(needs_redis=False) as here, here.database.transaction() as conn:
        found = {n: most for n, most in tenants.quotas(conn).items() if tenant in (None, n)}
    default = here.settings.tenant_max_queued
    others = "others" if found else tenant or "all tenants"
    usual = "no quota of their own" if default is None else f"{default:,}"
    lines = [*(f"{name}: {most:,}" for name, most in found.items()), f"{others}: {usual}"]
    output.report({"quotas": found, "default": default}, *lines)


@options.group()
def dead() -> None:
    """Dead and failed jobs.

    Dead jobs used up their attempts, or crashed several workers (WorkerLost). Failed jobs had an
    error that a retry would repeat, or met a bug in marco-search.
    """


@dead.command("list", short_help="List them.")
@options.tenants
@state_option
@error_option
@click.option("--limit", type=options.count(least=1), default=100, metavar="N")
def list_dead(state: str | None, error: str | None, limit: int) -> None:
    """List dead and failed jobs, the latest first."""
    with session() as here:
        found = here.producer(here.tenant).dead_letters(state=state, error=error, limit=limit)
    output.report_table({"jobs": found}, LETTERS, found, "No dead or failed jobs.")


@dead.command("show", short_help="Show why one is dead or failed.")
@options.tenants
@click.argument("job", metavar="JOB")
def show_dead(job: str) -> None:
    """Show why a job is dead or failed: its last error, with the traceback for a bug."""
    with session() as here:
        letter = here.producer(here.tenant).dead_letter(here.find([job])[0])
    output.report(letter, *letter_report(letter))


@dead.command("requeue", short_help="Queue them again.")
@options.jobs_argument
@options.tenants
@click.option("--all", "everything", is_flag=True, help="All, or those of --state and --error.")
@state_option
@error_option
@click.option("--restart", is_flag=True, help="Restart as new jobs.")
def requeue_dead(
    jobs: tuple[str, ...], everything: bool, state: str | None, error: str | None, restart: bool
) -> None:
    """Queue dead or failed jobs again: those named, or --all.

    Each continues from its last stored round, with its attempts reset. A deadline that has passed
    is removed. The audit log keeps the history. With --restart each is restarted as a new job; see
    `marco requeue`.
    """
    if bool(jobs) == everything:
        raise click.UsageError("Give jobs, or --all.")
    if jobs and (state or error):
        raise click.UsageError("--state and --error go with --all.")
    with session() as here:
        producer = here.producer(here.tenant)
        wanted = here.find(jobs)
        for job_id in wanted:
            producer.dead_letter(job_id)  # raises for one that is neither dead nor failed
        done: dict[UUID, UUID] = {}  # job to the one that continues it
        for batch in [wanted] if jobs else _letters(producer, state, error):
            done |= producer.restart(batch) if restart else {i: i for i in producer.requeue(batch)}
    _report_requeued(done, restarted=restart)


def _letters(producer: Producer, state: str | None, error: str | None) -> Iterator[list[UUID]]:
    """Those that are there now: one that fails again meanwhile is not among them."""
    chosen = partial(producer.dead_letters, state=state, error=error, requeueable=True, limit=500)
    letters = chosen()
    while letters:
        yield [letter.job_id for letter in letters]
        letters = chosen(before=letters[-1])


@options.command()
@options.jobs_argument
@options.tenants
@click.option("--all", "everything", is_flag=True, help="All jobs that wait for a model.")
@click.option("--restart", is_flag=True, help="Restart. Required.")
def requeue(jobs: tuple[str, ...], everything: bool, restart: bool) -> None:
    """Restart jobs, with --restart: those named, or all that wait for a model.

    A job continues only on the model and revision it was started on, and waits for a worker that
    has it; `marco status` shows how many wait. A restart makes a new job, with the same request, on
    the current model of the workers. The old one is cancelled and keeps its answers and its trail;
    each one's audit log names the other. Dead and failed jobs can be named, too.
    """
    if not restart:
        raise click.UsageError(
            "Give --restart, which creates new jobs. `marco dead requeue` continues dead and "
            "failed jobs from their last round."
        )
    if bool(jobs) == everything:
        raise click.UsageError("Give jobs, or --all.")
    with session() as here:
        producer = here.producer(here.tenant)
        wanted = here.find(jobs)
        done = producer.restart(wanted) if jobs else {}
        while not jobs and (waiting := producer.waiting_for_model()):
            done |= producer.restart(waiting)
    _report_requeued(done, restarted=True)
    if left := [str(job_id) for job_id in wanted if job_id not in done]:
        raise JobNotFound(
            f"{counted(len(left), 'job')} can't be restarted: {', '.join(left[:5])}; only jobs "
            "that are dead, failed, or queued after a start can"
        )


def _report_requeued(done: Mapping[UUID, UUID], *, restarted: bool) -> None:
    """Print what was done: each job, and the new job that replaces it."""
    ids = {str(old): str(new) for old, new in done.items()}
    word = "restarted" if restarted else "requeued"
    lines = [f"{old}  restarted as {new}" if restarted else old for old, new in ids.items()]
    output.report({word: ids if restarted else list(ids)}, *lines, f"{len(ids)} {word}")
