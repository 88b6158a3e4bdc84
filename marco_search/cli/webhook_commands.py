"""`marco webhooks`: addresses that are told of ends of jobs and batches."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any
from uuid import UUID

import click

from marco_search.cli import options, output
from marco_search.cli.session import session
from marco_search.errors import JobNotFound, ServiceError
from marco_search.store.queue import webhooks as store
from marco_search.text import counted

_TEST_S, _LOOK_EVERY_S = 15.0, 0.25


def _id_argument(what: str) -> Callable[..., Any]:
    return click.argument("named", metavar=what, type=click.UUID)


@click.group()
def webhooks() -> None:
    """Tell addresses of ends of jobs and batches, signed as Standard Webhooks has it."""


@webhooks.command("add", cls=options.JsonCommand, short_help="Add an address.")
@options.tenants
@click.argument("url")
@click.option("--events", metavar="EVENT,...", default=",".join(store.EVENTS), show_default=True)
def add(url: str, events: str) -> None:
    """Add URL, and print its id and its secret, which is not shown again."""
    names = [word.strip() for word in events.split(",")]
    with session(creates=True, needs_redis=False) as here:
        if here.tenant is None:
            raise click.UsageError("A webhook belongs to one tenant: not with --all-tenants.")
        with here.database.transaction() as conn:
            made, secret = store.add(conn, url, here.settings, tenant=here.tenant, events=names)
    data = {"id": made, "tenant": here.tenant, "url": url, "events": names, "secret": secret}
    output.report(data, f"{made}\n{secret}")


@webhooks.command("list", cls=options.JsonCommand, short_help="List them.")
@options.tenants
def show_list() -> None:
    """List webhooks, with the deliveries that wait and those that were given up."""
    with session(needs_redis=False) as here, here.database.transaction() as conn:
        found = store.registered(conn, tenant=here.tenant)
    lines = [
        f"{w.id}  {w.tenant}  {w.url}  {','.join(w.events)}  {w.pending:,} pending,"
        f" {w.failed:,} failed"
        for w in found
    ]
    output.report({"webhooks": [asdict(w) for w in found]}, "\n".join(lines) or "No webhooks.")


@webhooks.command("remove", cls=options.JsonCommand, short_help="Remove one.")
@options.tenants
@_id_argument("ID")
def remove(named: UUID) -> None:
    """Remove a webhook, and all its deliveries."""
    with session(needs_redis=False) as here, here.database.transaction() as conn:
        store.remove(conn, named, tenant=here.tenant)
    output.report({"removed": named}, "removed")


@webhooks.command("rotate", cls=options.JsonCommand, short_help="Give one a new secret.")
@options.tenants
@_id_argument("ID")
@click.option("--overlap", type=options.Seconds(min=0, max=366 * 86_400), metavar="S",
              default=store.OVERLAP_S, show_default=True,
              help="Seconds for which deliveries are signed with the old one too.")  # fmt: skip
def rotate(named: UUID, overlap: float) -> None:
    """Print a new secret, which is not shown again."""
    with session(needs_redis=False) as here, here.database.transaction() as conn:
        secret = store.rotate(conn, named, tenant=here.tenant, overlap_s=overlap)
    output.report({"id": named, "secret": secret}, secret)


@webhooks.command("test", cls=options.JsonCommand, short_help="Send a test event.")
@options.tenants
@_id_argument("ID")
def send_test(named: UUID) -> None:
    """Have a scheduler send an event of type "test", and say what became of it."""
    with session() as here:
        with here.database.transaction() as conn:
            made = store.add_test(conn, named, tenant=here.tenant)
        until = time.monotonic() + here.settings.webhook_timeout_s + _TEST_S
        while time.monotonic() < until:
            time.sleep(_LOOK_EVERY_S)
            with here.database.transaction() as conn:
                found = store.deliveries(conn, delivery_id=made)
            if found and (found[0].state == "delivered" or found[0].error):
                break
    if not found or not found[0].attempts:
        raise ServiceError("no scheduler sent it: start a worker, or `marco scheduler`")
    output.report(asdict(found[0]), _line(found[0]))
    if found[0].state != "delivered":
        click.get_current_context().exit(ServiceError.exit_code)


@webhooks.command("deliveries", cls=options.JsonCommand, short_help="Show what became of events.")
@options.tenants
@click.option("--webhook", type=click.UUID, metavar="ID", help="Only those of this one.")
@click.option("--state", type=click.Choice(("pending", "delivered", "failed")))
@click.option("--limit", type=options.count(least=1), default=20, show_default=True, metavar="N")
def show_deliveries(webhook: UUID | None, state: str | None, limit: int) -> None:
    """Show the latest deliveries; those that are done with are kept for 30 days."""
    with session(needs_redis=False) as here, here.database.transaction() as conn:
        found = store.deliveries(
            conn, tenant=here.tenant, webhook_id=webhook, state=state, limit=limit
        )
    lines = "\n".join(map(_line, found))
    output.report({"deliveries": [asdict(d) for d in found]}, lines or "No deliveries.")


@webhooks.command("resend", cls=options.JsonCommand, short_help="Send deliveries again.")
@options.tenants
@_id_argument("ID")
@click.option("--failed", is_flag=True, help="ID is a webhook's: all of its that were given up.")
def resend(named: UUID, failed: bool) -> None:
    """Send a delivery again, whatever became of it."""
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
