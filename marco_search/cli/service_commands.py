"""Commands about what runs: up, down, migrate, roles, doctor, worker, scheduler."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import click
from rich.text import Text

from marco_search import settings as settings_module
from marco_search.cli import output
from marco_search.cli.options import command
from marco_search.errors import BrokerUnavailable, InvalidSettings, RightsMissing
from marco_search.locations import database_url, redis_url
from marco_search.settings import Settings, without_password, worker_refusal

if TYPE_CHECKING:
    from marco_search.doctor import Finding

METRICS_PORT = click.option(
    "--metrics-port", type=click.IntRange(1, 65535), metavar="PORT",
    help="Serve metrics for Prometheus there (default: MARCO_METRICS_PORT, else none).",
)  # fmt: skip
ROLES_HINT = "a superuser can run `marco roles`, or the SQL that `marco roles --sql` prints"


@command()
@click.option(
    "--foreground", is_flag=True, help="Stay in the foreground until Ctrl-C or `marco down`."
)
def up(foreground: bool) -> None:
    """Start the embedded Postgres and Redis under MARCO_HOME (.marco).

    They run until `marco down`, are restarted if they crash, and listen on 127.0.0.1 only. With
    DATABASE_URL and REDIS_URL set there is nothing to start.
    """
    from marco_search import local
    from marco_search.cli.session import judge_addresses
    from marco_search.migrations import upgrade

    settings = settings_module.load()
    judge_addresses(settings)
    if settings.database_url is not None and settings.redis_url is not None:
        reason = "DATABASE_URL and REDIS_URL are set"
        output.report({"started": False, "reason": reason}, f"{reason}: nothing to start.")
        return
    if foreground:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler)
    with local.local_services(settings.home, stay=not foreground) as running:
        if settings.database_url is None:
            upgrade(database_url(settings))
        database = without_password(running.database_url)
        redis = without_password(running.redis_url)
        urls = {"database_url": database, "redis_url": redis}
        output.report(
            {"started": True, "home": str(settings.home.absolute())} | urls,
            f"Postgres {database}\nRedis    {redis}",
            "Ctrl-C stops them." if foreground else "`marco down` stops them.",
        )
        try:
            while foreground and local.is_running(settings.home):
                time.sleep(local.TICK_S)
        except KeyboardInterrupt:
            local.down(settings.home)


@command()
def down() -> None:
    """Stop the embedded Postgres and Redis. The data stays."""
    from marco_search.local import down as stop

    stopped = stop(settings_module.load().home)
    output.report({"stopped": stopped}, "Stopped." if stopped else "Nothing was running.")


@command()
def migrate() -> None:
    """Bring the database to this version's schema.

    Safe to repeat, and to run concurrently. Views, partitions and roles are updated too.
    DATABASE_URL must name a member of the owner's role, or a superuser; workers and producers only
    need the app's. A superuser first creates the database and the logins of MARCO_LOGINS, and sets
    their passwords.
    """
    from marco_search.local import local_services
    from marco_search.migrations import current, upgrade
    from marco_search.store.roles import make_logins

    settings = settings_module.load()
    with ExitStack() as stack:
        if settings.database_url is None:
            stack.enter_context(local_services(settings.home))
        url = database_url(settings)
        if settings.logins:
            make_logins(url, settings)
        before = current(url)
        refused = upgrade(url)
        after = current(url)
    text = f"Already at {after}." if before == after else f"From {before or 'nothing'} to {after}."
    output.report({"before": before, "after": after, "roles_refused": refused}, text)
    if refused is not None:
        text = f"The roles of the database were left as they are ({refused}): {ROLES_HINT}."
        output.note(text, "yellow")


@command()
@click.option("--sql", "as_sql", is_flag=True, help="Print the SQL instead of running it.")
def roles(as_sql: bool) -> None:
    """Create the roles owner, app, redactor, auditor and auditor_all, and give each its rights.

    `marco migrate` does the same if its login has the rights. Otherwise a superuser (in
    DATABASE_URL) runs this once, or the SQL that --sql prints. docs/sql.md describes the roles, and
    how a person becomes an auditor.
    """
    from marco_search.cli.session import session
    from marco_search.migrations import grant_roles
    from marco_search.store.roles import ROLES, name, statements

    prefix = settings_module.load().role_prefix
    if as_sql:
        body = (f"{statement.strip()};" for statement in statements(prefix))
        text = "\n".join(["BEGIN;", *body, "COMMIT;"])
        output.print_json({"sql": text}) if output.as_json() else output.echo(text)
        return
    names = [name(prefix, role) for role in ROLES]
    with session(creates=True, migrates=True) as here:
        refused = grant_roles(database_url(here.settings))
    if refused is not None:
        raise RightsMissing(f"{refused}: {ROLES_HINT}")
    output.report({"roles": names}, "Made, with their rights: " + ", ".join(names))


@command()
def doctor() -> None:
    """Report what is reachable, what is wrong, and how to fix it.

    Exits with 4 if anything is wrong. Nothing is started or changed.
    """
    from marco_search.doctor import run_checks

    found = run_checks(settings_module.load())
    ok = all(finding.ok for finding in found)
    output.report({"ok": ok, "checks": found}, findings_text(found))
    if not ok:
        click.get_current_context().exit(BrokerUnavailable.exit_code)


def findings_text(found: Sequence[Finding]) -> Text:
    """A line for each check, and below one that failed how to fix it."""
    out = Text()
    width = max((len(finding.name) for finding in found), default=0)
    for finding in found:
        mark, style = ("ok   ", "green") if finding.ok else ("wrong", "bold red")
        out.append(mark, style=style).append(f"  {finding.name:{width}}  {finding.detail}\n")
        if not finding.ok and finding.fix:
            out.append(f"{'':7}{'':{width}}  {finding.fix}\n", style="yellow")
    bad = sum(1 for finding in found if not finding.ok)
    return out.append("All well." if not bad else f"{bad} of {len(found)} wrong.", style="bold")


@command()
@click.option(
    "-c", "--concurrency", type=click.IntRange(min=1, max=256), metavar="N",
    help="Jobs run at once, each in a process (default: MARCO_WORKER_PROCESSES, else 1).",
)  # fmt: skip
@click.option(
    "--name", default="celery", metavar="NAME", help="Distinguishes workers on one machine."
)
@click.option("--check", is_flag=True, help="Only check whether this worker is consuming messages.")
@METRICS_PORT
def worker(concurrency: int | None, name: str, check: bool, metrics_port: int | None) -> None:
    """Run a worker that answers submitted jobs, until Ctrl-C or SIGTERM.

    It then takes no more jobs, finishes and stores its current rounds (within MARCO_STOP_S seconds)
    and releases its jobs: another worker continues them at once. SIGQUIT does the same within a few
    seconds. It logs to standard error; --json changes only how an error is shown.

    --check starts nothing: it fails if the worker of this name and machine has not been heard of
    for 15 seconds (for the health check of a container).
    """
    if check:
        from marco_search.broker import Publisher

        wanted, settings = f"{name}@{socket.gethostname()}", settings_module.load()
        with closing(Publisher(redis_url(settings), settings.queue)) as publisher:
            if wanted not in publisher.workers():
                raise BrokerUnavailable(f"worker {wanted}: not heard of for 15 s; see its log")
        output.report({"worker": wanted, "takes_messages": True}, f"{wanted}: takes messages")
        return
    from marco_search.cli.session import session
    from worker.main import run

    if refused := worker_refusal(settings_module.load()):
        raise InvalidSettings(refused)
    # The session keeps embedded services alive as long as the worker runs.
    with session(creates=True) as here:
        settings = _with_metrics(here.settings, metrics_port)
        click.get_current_context().exit(run(settings, processes=concurrency, name=name))


@command()
@METRICS_PORT
def scheduler(metrics_port: int | None) -> None:
    """Run the scheduler until Ctrl-C or SIGTERM.

    Publishes due jobs, reclaims those of lost workers, and ends jobs past their deadline. Workers
    do the same unless MARCO_WORKER_SCHEDULER=false, so a small setup needs none. Several may run.
    It logs to standard error.
    """
    from marco_search.cli.session import session
    from worker.scheduler import run

    with session(creates=True) as here:
        click.get_current_context().exit(run(_with_metrics(here.settings, metrics_port)))


def _with_metrics(settings: Settings, port: int | None) -> Settings:
    return settings if port is None else settings.model_copy(update={"metrics_port": port})
