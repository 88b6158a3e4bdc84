"""Commands about what runs: up, down, migrate, doctor, worker, scheduler, console, serve."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import click
from psycopg.conninfo import make_conninfo
from rich.text import Text

from marco_search import logs
from marco_search import settings as settings_module
from marco_search.cli import output
from marco_search.cli.options import JsonCommand, command
from marco_search.errors import BrokerUnavailable, InvalidSettings, LocalServiceFailed, MarcoError
from marco_search.locations import database_url, redis_url
from marco_search.metrics import API, measured
from marco_search.settings import Settings, console_refusal, without_password

if TYPE_CHECKING:
    from marco_search.doctor import Finding
    from marco_search.local import ServiceUrls

UNREACHABLE = 4  # as for a service that does not answer
CONSOLE_PORT, API_PORT = 8780, 8781
METRICS_PORT = click.option(
    "--metrics-port", type=click.IntRange(1, 65535), metavar="PORT",
    help="Serve metrics for Prometheus there (default: MARCO_METRICS_PORT, else none).",
)  # fmt: skip
ROLES_HINT = "a superuser can run `marco roles`, or the SQL that `marco roles --sql` prints"


@command()
@click.option("--foreground", is_flag=True, help="Stay, until Ctrl-C or `marco down`.")
def up(foreground: bool) -> None:
    """Start the embedded Postgres and Redis under MARCO_HOME (.marco).

    They stay until `marco down`, come back when they die, and listen on 127.0.0.1 only. With
    DATABASE_URL and REDIS_URL set there is nothing to start.
    """
    from marco_search.local import up as start
    from marco_search.migrations import upgrade

    settings = settings_module.load()
    if settings.database_url is not None and settings.redis_url is not None:
        reason = "DATABASE_URL and REDIS_URL are set"
        output.report({"started": False, "reason": reason}, f"{reason}: nothing to start.")
        return

    def ready(running: ServiceUrls) -> None:
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

    start(settings.home, foreground, ready)


@command()
def down() -> None:
    """Stop the embedded Postgres and Redis. The data stays."""
    from marco_search.local import down as stop

    stopped = stop(settings_module.load().home)
    output.report({"stopped": stopped}, "Stopped." if stopped else "Nothing was running.")


@click.command(
    "psql", cls=JsonCommand, context_settings={"ignore_unknown_options": True},
)  # fmt: skip
@click.option("--print-url", is_flag=True, help="Print the URL with its password instead.")
@click.argument("arguments", metavar="[PSQL ARGUMENTS]...", nargs=-1, type=click.UNPROCESSED)
def psql(print_url: bool, arguments: tuple[str, ...]) -> None:
    """Open psql on the database, as DATABASE_URL or the embedded one has it.

    The password is not on psql's command line. --print-url is for other programs (DBeaver,
    Grafana); an embedded database answers them as long as `marco up` keeps it running.

    \b
    marco psql -c "SELECT state, count(*) FROM audit.jobs GROUP BY state"
    """
    from marco_search.cli.session import session
    from marco_search.store import address

    with session(needs_redis=False) as here:
        url = database_url(here.settings)
        if print_url:
            output.report({"url": url}, url)
            return
        given = address.parameters(address.conninfo(url, "marco psql"))
        environment = os.environ | {"PGPASSWORD": given.pop("password", "")}
        given.pop("sslpassword", None)  # psql asks for it
        program = [_psql(), "-d", make_conninfo(**given), *arguments]
        signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is psql's
        code = subprocess.run(program, env=environment, check=False).returncode
    click.get_current_context().exit(code)


def _psql() -> str:
    """The path of psql: of this machine, else of the embedded Postgres."""
    from marco_search.local import programs

    if found := shutil.which("psql"):
        return found
    with suppress(LocalServiceFailed):
        return str(programs.installed().postgres / "psql")
    raise MarcoError(
        "psql is not installed: install the package postgresql-client, use `marco sql`, or give "
        "another program the URL that `marco psql --print-url` prints"
    )


@command()
def migrate() -> None:
    """Bring the database to this version's schema. Safe to run again, and by several at once.

    Views, partitions and roles are brought up to date too. DATABASE_URL must name a member of
    the owner's role, or a superuser; workers and producers need no more than the app's. A
    superuser first makes the database and the logins of MARCO_LOGINS, and sets their passwords.
    """
    from marco_search.local import local_services
    from marco_search.migrations import current, upgrade
    from marco_search.migrations.logins import make_logins

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
def doctor() -> None:
    """Report what is reachable, what is wrong, and how to fix it. Exits with 4 if anything is.

    Nothing is started and nothing is changed.
    """
    from marco_search.doctor import run_checks

    found = run_checks(settings_module.load())
    ok = all(finding.ok for finding in found)
    output.report({"ok": ok, "checks": found}, findings_text(found))
    if not ok:
        click.get_current_context().exit(UNREACHABLE)


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
    "--name", default="celery", show_default=True, metavar="NAME",
    help="Tells workers on one machine apart.",
)  # fmt: skip
@click.option("--check", is_flag=True, help="Only see whether this worker takes messages.")
@METRICS_PORT
def worker(concurrency: int | None, name: str, check: bool, metrics_port: int | None) -> None:
    """Run a worker that answers submitted jobs, until Ctrl-C or SIGTERM.

    It then takes no more jobs, finishes and keeps the rounds it is at (for MARCO_STOP_S seconds
    at most) and gives its jobs back: another worker goes on with them at once. SIGQUIT does the
    same in a few seconds. It logs to standard error; --json changes only how an error is shown.

    --check starts nothing: it fails if the worker of this name and machine has not been heard of
    for 15 seconds (for the health check of a container).
    """
    if check:
        from marco_search.broker import Publisher

        wanted, settings = f"{name}@{socket.gethostname()}", settings_module.load()
        with closing(Publisher(redis_url(settings), settings.queue)) as publisher:
            if wanted not in publisher.workers():
                raise BrokerUnavailable(f"worker {wanted}: not heard of for 15 s; see its log")
        click.echo(f"{wanted}: takes messages")
        return
    from marco_search.cli.session import session
    from worker.main import run

    # The session keeps embedded services alive as long as the worker runs.
    with session(creates=True) as here:
        settings = _with_metrics(here.settings, metrics_port)
        click.get_current_context().exit(run(settings, processes=concurrency, name=name))


@command()
@METRICS_PORT
def scheduler(metrics_port: int | None) -> None:
    """Run the scheduler until Ctrl-C or SIGTERM.

    Publishes jobs that became due, takes jobs back from workers that are gone, and ends jobs
    whose deadline has passed. Workers do the same unless MARCO_WORKER_SCHEDULER=false, so a small
    set-up needs none. Several may run. It logs to standard error.
    """
    from marco_search.cli.session import session
    from worker.scheduler import run

    with session(creates=True) as here:
        click.get_current_context().exit(run(_with_metrics(here.settings, metrics_port)))


def _with_metrics(settings: Settings, port: int | None) -> Settings:
    return settings if port is None else settings.model_copy(update={"metrics_port": port})


def _listens(port: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """--host and --port of a command that serves."""
    host = click.option(
        "--host", default="127.0.0.1", show_default=True, help="Address to listen at."
    )
    number = click.option(
        "--port", type=click.IntRange(0, 65535), default=port, show_default=True,
        help="Port; 0 takes a free one.",
    )  # fmt: skip
    return lambda function: host(number(function))


def _announced(where: str, note: str, **secret: str | None) -> Callable[[str], None]:
    """What says where a server answers; as JSON with the secret that was made for it, if one."""

    def ready(address: str) -> None:
        if output.as_json():
            made = {name: value for name, value in secret.items() if value}
            output.print_json_line({"address": address} | made)
            return
        output.show(f"{where.format(address)}  (Ctrl-C stops it)")
        if note:
            output.show(note)

    return ready


@command()
@_listens(API_PORT)
def serve(host: str, port: int) -> None:
    """Serve the HTTP API, which OpenAI's clients can call, until Ctrl-C.

    Every request carries a key that `marco keys create` made. As long as there is none, a server
    that listens on this machine only makes one for MARCO_TENANT, which holds until it stops, and
    prints it; others refuse all requests. It speaks plain HTTP: put a proxy with TLS before it on
    a network that you do not trust.
    """
    from marco_search.api.access import Service
    from marco_search.api.app import create_app
    from marco_search.cli.session import session
    from marco_search.http_server import LOOPBACK
    from marco_search.http_server import serve as serve_http
    from marco_search.store import api_keys
    from producer import AsyncProducer

    with session(creates=True) as here:
        with here.database.transaction() as conn:
            keyless = not api_keys.any_usable(conn)
        local_key = api_keys.new_key()[0] if keyless and host in LOOPBACK else None

        note = "No key yet, it refuses all requests: `marco keys create` makes one"
        if local_key:
            note = f"Key, until it stops: {local_key}"
        ready = _announced(
            "API at {0}, described at {0}docs", note if keyless else "", key=local_key
        )
        producer = AsyncProducer(settings=here.settings, poll_s=10.0)
        app = create_app(Service(here.settings, here.database, producer, local_key))
        logs.set_up(here.settings)
        try:
            with measured(here.settings, [API]):
                serve_http(app, host, port, ready, answer_s=here.settings.api_wait_s + 60.0)
        finally:
            asyncio.run(producer.close())


@command()
@_listens(CONSOLE_PORT)
@click.option(
    "--allow-host", "names", metavar="NAME", multiple=True,
    help="A name by which browsers reach it (behind a proxy, say); may be given again.",
)  # fmt: skip
def console(host: str, port: int, names: tuple[str, ...]) -> None:
    """Serve a read-only web page of jobs, their trees and their audit log, until Ctrl-C.

    It listens on this machine only. At any other --host it asks for a token: that of
    MARCO_CONSOLE_TOKEN, or one made now and printed once. With MARCO_CONSOLE_TOKEN set it
    always asks. It speaks plain HTTP: put a proxy with TLS before it on a network that you do
    not trust.
    """
    from marco_search.cli.session import session
    from marco_search.console.access import Access
    from marco_search.console.app import create_app
    from marco_search.console.reader import Reader
    from marco_search.http_server import LOOPBACK, serve
    from marco_search.store.db import Database
    from producer.standstill import workers

    with session(needs_redis=False) as here:
        given = here.settings.console_token
        token = given.get_secret_value() or None if given else None
        if refused := console_refusal(here.settings):
            raise InvalidSettings(refused)
        made = token is None and (host not in LOOPBACK or bool(names))
        token = secrets.token_urlsafe(24) if made else token

        note = "It asks for the token of MARCO_CONSOLE_TOKEN." if token else ""
        if made:
            note = f"Token, shown this once: {token}"
        ready = _announced("Console at {0}", note, token=token if made else None)
        url = database_url(here.settings)
        with closing(Database(url, application="marco-console", read_only=True)) as database:
            names = names if host in LOOPBACK else (host, *names)
            logs.set_up(here.settings)
            app = create_app(
                Reader(database, partial(workers, here.settings)), Access(token, names)
            )
            serve(app, host, port, ready)
