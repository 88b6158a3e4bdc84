"""`marco keys`: keys of the HTTP API."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from marco_search.cli import options, output
from marco_search.cli.session import session
from marco_search.cli.tables import Column, number, text_table
from marco_search.store import api_keys
from marco_search.store.api_keys import RIGHTS, ApiKey


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


@click.group()
def keys() -> None:
    """Keys of the HTTP API (`marco serve`): each is one tenant's, with rights and a rate limit."""


@keys.command("create", cls=options.JsonCommand, short_help="Make a key and print it, once.")
@options.tenants
@click.option("--name", default="", metavar="TEXT", help="What it is for, as lists show it.")
@click.option(
    "--right", "rights", type=click.Choice(RIGHTS), multiple=True,
    help="What it may do; may be given again (default: all).",
)  # fmt: skip
@click.option(
    "--rate", type=options.count(least=1), metavar="N", help="Requests a minute (default: any)."
)
@click.option(
    "--expires-in", type=options.Seconds(min=0, min_open=True), metavar="S",
    help="Seconds until it expires (default: never).",
)  # fmt: skip
def create_key(
    name: str, rights: tuple[str, ...], rate: int | None, expires_in: float | None
) -> None:
    """Make a key for the tenant and print it. It is stored as a hash: nobody can show it again."""
    with session(creates=True, needs_redis=False) as here:
        if here.tenant is None:
            raise click.UsageError("A key is one tenant's: give --tenant NAME.")
        with here.database.transaction() as conn:
            key, public = api_keys.create(
                conn, tenant=here.tenant, name=name, rights=rights or RIGHTS, per_minute=rate,
                expires_in_s=expires_in,
            )  # fmt: skip
    output.report({"key": key, "id": public, "tenant": here.tenant}, key)
    if not output.as_json():
        output.note(f"Key {public} of tenant {here.tenant!r}: shown this once.")


@keys.command("list", cls=options.JsonCommand, short_help="List the keys.")
@options.tenants
def list_keys() -> None:
    """List the keys of the tenant: not the keys themselves, which are stored nowhere."""
    with session(needs_redis=False) as here, here.database.transaction() as conn:
        found = api_keys.listed(conn, here.tenant)
    table = text_table(_COLUMNS, found, width=output.terminal_width())
    output.report({"keys": found}, table if found else "No keys: `marco keys create` makes one.")


@keys.command("revoke", cls=options.JsonCommand, short_help="Take a key no more.")
@options.tenants
@click.argument("key_id", metavar="ID")
def revoke_key(key_id: str) -> None:
    """Take a key no more, from now on. ID is its second part, as `marco keys list` shows it."""
    with session(needs_redis=False) as here, here.database.transaction() as conn:
        api_keys.revoke(conn, key_id, here.tenant)
    output.report({"revoked": key_id}, f"{key_id} revoked")
