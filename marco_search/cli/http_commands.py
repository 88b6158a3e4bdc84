"""Commands about HTTP: console, serve, and whom it serves and tells: keys, webhooks."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from uuid import UUID

import click

from marco_search import logs
from marco_search import settings as settings_module
from marco_search.cli import options, output
from marco_search.cli.output import Column, number
from marco_search.cli.session import session
from marco_search.errors import InvalidSettings, JobNotFound, ServiceError
from marco_search.locations import database_url
from marco_search.metrics import API, measured
from marco_search.settings import console_refusal
from marco_search.store import api_keys
from marco_search.store.api_keys import RIGHTS, ApiKey
from marco_search.store.queue import webhooks as store
from marco_search.text import counted

CONSOLE_PORT, API_PORT = 8780, 8781
_LONGEST_S = 100 * 366 * 86_400  # of a key: Python has no times after the year 9999


def _listens(port: int) -> options.Decorator:
    """--host and --port of a command that serves."""
    return options.together(
        click.option("--host", default="127.0.0.1", help="Address to listen at."),
        click.option(
            "--port", type=click.IntRange(0, 65535), default=port, help="Port; 0 takes a free one."
        ),
    )  # fmt: skip


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


@options.command()
@_listens(API_PORT)
def serve(host: str, port: int) -> None:
    """Serve the HTTP API, compatible with OpenAI's clients, until Ctrl-C.

    Every request needs a key made by `marco keys create`. If there is none, a server on loopback
    creates one for MARCO_TENANT, prints it, and accepts it until it stops; other servers refuse all
    requests. It speaks plain HTTP: on an untrusted network put a TLS proxy in front.
    """
    from marco_search.api import create_app
    from marco_search.api.access import Service
    from marco_search.http_server import LOOPBACK
    from marco_search.http_server import serve as serve_http
    from producer import AsyncProducer

    with session(creates=True) as here:
        keyless = not here.database.call(api_keys.any_usable)
        local_key = api_keys.new_key()[0] if keyless and host in LOOPBACK else None

        note = "No key yet, it refuses all requests: `marco keys create` makes one"
        if local_key:
            note = f"Key, until it stops: {local_key}"
        ready = _announced(
            "API at {0}, described at {0}docs", note if keyless else "", key=local_key
        )
        producer = AsyncProducer(settings=here.settings, poll_s=10.0)
        service = Service(here.settings, here.database, producer, local_key)
        logs.set_up(here.settings)
        try:
            with measured(here.settings, [API]):
                serve_http(
                    create_app(service), host, port, ready,
                    answer_s=here.settings.api_wait_s + 60.0, stopping=service.stopping,
                )  # fmt: skip
        finally:
            asyncio.run(producer.close())


@options.command()
@_listens(CONSOLE_PORT)
@click.option(
    "--allow-host", "names", metavar="NAME", multiple=True,
    help="A host name that browsers use for it, such as a proxy's; repeatable.",
)  # fmt: skip
def console(host: str, port: int, names: tuple[str, ...]) -> None:
    """Serve a read-only web page of jobs, their trees and their audit log, until Ctrl-C.

    It listens on loopback only. On any other --host it requires a token: MARCO_CONSOLE_TOKEN, or
    one that it creates and prints once. With MARCO_CONSOLE_TOKEN set it always requires it. It
    speaks plain HTTP: on an untrusted network put a TLS proxy in front.
    """
    from marco_search.console.access import Access
    from marco_search.console.app import create_app
    from marco_search.console.reader import Reader
    from marco_search.http_server import LOOPBACK, serve
    from marco_search.store.db import Database
    from producer.waits import workers

    if refused := console_refusal(settings_module.load()):
        raise InvalidSettings(refused)
    with session(needs_redis=False) as here:
        given = here.settings.console_token
        token = given.get_secret_value() or None if given else None
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


def _state(key: ApiKey) -> str:
    expired = key.expires_at is not None and key.expires_at <= datetime.now(UTC)
    return "revoked" if key.revoked_at else "expired" if expired else "valid"


_COLUMNS = (
    Column("id", lambda key: key.id),
    Column("tenant", lambda key: key.tenant, flexible=True),
    Column("name", lambda key: key.name, flexible=True),
    Column("state", _state),
    Column("rights", lambda key: ", ".join(key.rights)),
    number("a minute", lambda key: str(key.per_minute or ""), drop=2),
    Column("expires", lambda key: f"{key.expires_at:%Y-%m-%d}" if key.expires_at else "", drop=1),
)


@options.group()
def keys() -> None:
    """Keys of the HTTP API (`marco serve`), each of one tenant, with rights and a rate limit."""


@keys.command("create", short_help="Make a key and print it, once.")
@options.one_tenant
@click.option("--name", metavar="TEXT", help="A label, shown in lists.")
@click.option(
    "--right", "rights", type=click.Choice(RIGHTS), multiple=True,
    help="A right to grant; repeatable (default: all).",
)  # fmt: skip
@click.option(
    "--rate", type=options.count(least=1), metavar="N", help="Requests a minute (default: any)."
)
@click.option(
    "--expires-in", type=options.Finite(min=0, max=_LONGEST_S, min_open=True), metavar="S",
    help="Seconds until it expires (default: never).",
)  # fmt: skip
def create_key(
    name: str | None, rights: tuple[str, ...], rate: int | None, expires_in: float | None
) -> None:
    """Create a key for the tenant and print it. Only a hash is stored: it can't be shown again."""
    with session(creates=True, needs_redis=False) as here, here.database.transaction() as conn:
        tenant = here.tenant or here.settings.tenant
        key, public = api_keys.create(
            conn, tenant=tenant, name=name or "", rights=rights or RIGHTS, per_minute=rate,
            expires_in_s=expires_in,
        )  # fmt: skip
    data = {"key": key, "id": public, "tenant": tenant}
    output.report(data, key, remark=f"Key {public} of tenant {tenant!r}: shown only once.")


@keys.command("list", short_help="List the keys.")
@options.tenants
def list_keys() -> None:
    """List the keys of the tenant, without their secrets, which are not stored."""
    with session(needs_redis=False) as here, here.database.transaction() as conn:
        found = api_keys.listed(conn, here.tenant)
    none = "No keys: `marco keys create` makes one."
    output.report_table({"keys": found}, _COLUMNS, found, none)


@keys.command("revoke", short_help="Revoke a key.")
@options.tenants
@click.argument("key_id", metavar="ID")
def revoke_key(key_id: str) -> None:
    """Revoke a key, effective at once. ID is its second part, as shown by `marco keys list`."""
    with session(needs_redis=False) as here, here.database.transaction() as conn:
        api_keys.revoke(conn, key_id, here.tenant)
    output.report({"revoked": key_id}, f"{key_id} revoked")


_TEST_S, _LOOK_EVERY_S = 15.0, 0.25
_id_argument = click.argument("named", metavar="ID", type=click.UUID)


@options.group()
def webhooks() -> None:
    """Signed notifications (Standard Webhooks) to a URL when jobs and batches end."""


@webhooks.command("add", short_help="Add an address.")
@options.one_tenant
@click.argument("url")
@click.option("--events", metavar="EVENT,...", default=",".join(store.EVENTS))
def add(url: str, events: str) -> None:
    """Add a webhook for URL, and print its id and its secret, which is not shown again."""
    names = [word.strip() for word in events.split(",")]
    with session(creates=True, needs_redis=False) as here, here.database.transaction() as conn:
        tenant = here.tenant or here.settings.tenant
        made, secret = store.add(conn, url, here.settings, tenant=tenant, events=names)
    data = {"id": made, "tenant": tenant, "url": url, "events": names, "secret": secret}
    output.report(data, f"{made}\n{secret}")


@webhooks.command("list", short_help="List them.")
@options.tenants
def show_list() -> None:
    """List webhooks, with the number of pending and failed deliveries."""
    with session(needs_redis=False) as here, here.database.transaction() as conn:
        found = store.registered(conn, tenant=here.tenant)
    lines = [
        f"{w.id}  {w.tenant}  {w.url}  {','.join(w.events)}  {w.pending:,} pending,"
        f" {w.failed:,} failed"
        for w in found
    ]
    output.report({"webhooks": found}, "\n".join(lines) or "No webhooks.")


@webhooks.command("remove", short_help="Remove one.")
@options.tenants
@_id_argument
def remove(named: UUID) -> None:
    """Remove a webhook, and all its deliveries."""
    with session(needs_redis=False) as here, here.database.transaction() as conn:
        store.remove(conn, named, tenant=here.tenant)
    output.report({"removed": named}, "removed")


@webhooks.command("rotate", short_help="Give one a new secret.")
@options.tenants
@_id_argument
@click.option("--overlap", type=options.Finite(min=0, max=366 * 86_400), metavar="S",
              default=store.OVERLAP_S,
              help="Seconds for which deliveries are also signed with the old secret.")  # fmt: skip
def rotate(named: UUID, overlap: float) -> None:
    """Print a new secret, which is not shown again."""
    with session(needs_redis=False) as here, here.database.transaction() as conn:
        secret = store.rotate(conn, named, tenant=here.tenant, overlap_s=overlap)
    output.report({"id": named, "secret": secret}, secret)


@webhooks.command("test", short_help="Send a test event.")
@options.tenants
@_id_argument
def send_test(named: UUID) -> None:
    """Have a scheduler send an event of type "test", and report the outcome."""
    with session() as here:
        made = here.database.call(store.add_test, named, tenant=here.tenant)
        until = time.monotonic() + here.settings.webhook_timeout_s + _TEST_S
        while time.monotonic() < until:
            time.sleep(_LOOK_EVERY_S)
            found = here.database.call(store.deliveries, delivery_id=made)
            if found and (found[0].state == "delivered" or found[0].error):
                break
    if not found or not found[0].attempts:
        raise ServiceError("no scheduler sent it: start a worker, or `marco scheduler`")
    output.report(found[0], _line(found[0]))
    if found[0].state != "delivered":
        click.get_current_context().exit(ServiceError.exit_code)


@webhooks.command("deliveries", short_help="Show the latest deliveries.")
@options.tenants
@click.option("--webhook", type=click.UUID, metavar="ID", help="Only those of this one.")
@click.option("--state", type=click.Choice(("pending", "delivered", "failed")))
@click.option("--limit", type=options.count(least=1), default=20, metavar="N")
def show_deliveries(webhook: UUID | None, state: str | None, limit: int) -> None:
    """Show the latest deliveries; completed ones are kept for 30 days."""
    with session(needs_redis=False) as here, here.database.transaction() as conn:
        found = store.deliveries(
            conn, tenant=here.tenant, webhook_id=webhook, state=state, limit=limit
        )
    lines = "\n".join(map(_line, found))
    output.report({"deliveries": found}, lines or "No deliveries.")


@webhooks.command("resend", short_help="Send deliveries again.")
@options.tenants
@_id_argument
@click.option("--failed", is_flag=True, help="ID is a webhook: send all its failed deliveries.")
def resend(named: UUID, failed: bool) -> None:
    """Send a delivery again, whatever its state."""
    which = {"webhook_id" if failed else "delivery_id": named}
    with session(needs_redis=False) as here, here.database.transaction() as conn:
        count = store.resend(conn, tenant=here.tenant, **which)
    if not count and not failed:
        raise JobNotFound(f"no delivery {named}; `marco webhooks deliveries` shows them")
    output.report({"resent": count}, f"{count:,} to be sent again")


def _line(one: store.Delivery) -> str:
    about = one.job_id or one.batch_id or ""
    error = f"  {one.error}" if one.error else ""
    tries = counted(one.attempts, "attempt")
    return f"{one.id}  {one.created_at:%F %T}  {one.event}  {about}  {one.state}, {tries}{error}"
