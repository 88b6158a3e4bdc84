"""`marco up`, `down` and `migrate`: the servers and the schema."""

from __future__ import annotations

from collections.abc import Mapping

import click

from marco_search.cli.output import console, json_option, print_json


@click.command(short_help="Start the embedded Postgres and Redis.")
@click.option("--foreground", is_flag=True, help="Stay, until Ctrl-C or `marco down`.")
@json_option
def up(foreground: bool, as_json: bool) -> None:
    """Start the embedded Postgres and Redis under MARCO_HOME (.marco).

    They stay until `marco down`, come back when they die, and listen on 127.0.0.1 only. With
    DATABASE_URL and REDIS_URL set there is nothing to start.
    """
    from marco_search import settings
    from marco_search.cli.session import is_embedded
    from marco_search.local import ServiceUrls, status
    from marco_search.local import up as start
    from marco_search.locations import database_url
    from marco_search.migrations import upgrade

    here = settings.load()
    if not is_embedded(here):
        report = {"started": False, "reason": "DATABASE_URL and REDIS_URL are set"}
        _print(report, "DATABASE_URL and REDIS_URL are set: nothing to start.", as_json)
        return

    def ready(_: ServiceUrls) -> None:
        if here.database_url is None:
            upgrade(database_url(here))
        now = status(here.home)
        data = {
            "started": True,
            "home": str(now.home),
            "database_url": now.database_url,
            "redis_url": now.redis_url,
        }
        until = "Ctrl-C stops them." if foreground else "`marco down` stops them."
        text = f"Postgres {now.database_url}\nRedis    {now.redis_url}\n{until}"
        _print(data, text, as_json)

    start(here.home, foreground, ready)


@click.command(short_help="Stop them.")
@json_option
def down(as_json: bool) -> None:
    """Stop the embedded Postgres and Redis. The data stays."""
    from marco_search import settings
    from marco_search.local import down as stop

    stopped = stop(settings.load().home)
    _print({"stopped": stopped}, "Stopped." if stopped else "Nothing was running.", as_json)


@click.command(short_help="Bring the database to this version's schema.")
@json_option
def migrate(as_json: bool) -> None:
    """Bring the database to this version's schema. Safe to run again, and by several at once.

    Views, partitions and roles are brought up to date too. DATABASE_URL must name a member of
    the owner's role, or a superuser; workers and producers need no more than the app's.
    """
    from contextlib import ExitStack

    from marco_search import settings
    from marco_search.local import local_services
    from marco_search.locations import database_url
    from marco_search.migrations import current, upgrade

    here = settings.load()
    with ExitStack() as stack:
        if here.database_url is None:
            stack.enter_context(local_services(here.home))
        url = database_url(here)
        before = current(url)
        refused = upgrade(url)
        after = current(url)
    data = {"before": before, "after": after, "roles_refused": refused}
    if before == after:
        _print(data, f"Already at {after}.", as_json)
    else:
        _print(data, f"From {before or 'nothing'} to {after}.", as_json)
    if refused is not None:
        from marco_search.cli.commands.roles import WHO

        text = f"The roles of the database were left as they are ({refused}): {WHO}."
        console(stderr=True).print(text, style="yellow")


def _print(data: Mapping[str, object], text: str, as_json: bool) -> None:
    if as_json:
        print_json(data)
    else:
        console().print(text)
