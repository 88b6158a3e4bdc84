"""`marco console`: jobs and trees in a browser."""

from __future__ import annotations

import secrets

import click

from marco_search.cli.output import echo, json_option, print_json_line

PORT = 8780


@click.command(short_help="Show jobs and their trees in a browser.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=PORT,
    show_default=True,
    help="Port; 0 takes a free one.",
)
@click.option(
    "--allow-host",
    "names",
    metavar="NAME",
    multiple=True,
    help="A name by which browsers reach it (behind a proxy, say); may be given again.",
)
@json_option
def console(host: str, port: int, names: tuple[str, ...], as_json: bool) -> None:
    """Serve a read-only web page of jobs, their trees and their audit log, until Ctrl-C.

    It listens on this machine only. At any other --host it asks for a token: that of
    MARCO_CONSOLE_TOKEN, or one made now and printed once. With MARCO_CONSOLE_TOKEN set it
    always asks. It speaks plain HTTP: put a proxy with TLS before it on a network that you do
    not trust.
    """
    from contextlib import closing

    from marco_search.cli.session import session
    from marco_search.console.access import Access
    from marco_search.console.app import create_app
    from marco_search.console.reader import Reader
    from marco_search.console.server import LOOPBACK, serve
    from marco_search.errors import InvalidSettings
    from marco_search.locations import database_url
    from marco_search.settings import console_refusal
    from marco_search.store.db import Database

    with session(needs_redis=False) as here:
        given = here.settings.console_token
        token = given.get_secret_value() or None if given else None
        if refused := console_refusal(here.settings):
            raise InvalidSettings(refused)
        made = token is None and (host not in LOOPBACK or bool(names))
        if made:
            token = secrets.token_urlsafe(24)

        def ready(address: str) -> None:
            data = {"address": address} | ({"token": token} if made else {})
            if as_json:
                print_json_line(data)
                return
            echo(f"Console at {address}  (Ctrl-C stops it)")
            if made:
                echo(f"Token, shown this once: {token}")
            elif token:
                echo("It asks for the token of MARCO_CONSOLE_TOKEN.")

        url = database_url(here.settings)
        with closing(Database(url, application="marco-console", read_only=True)) as database:
            reader = Reader(database)
            names = names if host in LOOPBACK else (host, *names)
            serve(create_app(reader, Access(token, names)), host, port, ready)
