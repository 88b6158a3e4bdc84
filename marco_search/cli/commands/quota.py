"""`marco quota`: how many jobs a tenant may have queued."""

from __future__ import annotations

import click

from marco_search.cli.output import echo, json_option, print_json
from marco_search.cli.parameters import LARGEST_COUNT


@click.command(short_help="Limit a tenant's queued jobs.")
@click.argument("tenant", metavar="[TENANT]", required=False)
@click.argument("limit", metavar="[N|default]", required=False)
@json_option
def quota(tenant: str | None, limit: str | None, as_json: bool) -> None:
    """Let TENANT have at most N queued jobs; "default": as MARCO_TENANT_MAX_QUEUED has it.

    What is queued already stays. Whoever submits more is refused and told to try later. Without
    N: list the quotas, of all tenants or of TENANT.
    """
    if tenant is None or limit is None:
        _list(tenant, as_json)
        return
    if not tenant:
        raise click.UsageError("TENANT is empty.")
    if limit != "default" and not (limit.isdecimal() and int(limit[:12]) <= LARGEST_COUNT):
        raise click.UsageError(f'{limit!r} is no number of jobs; give one, or "default".')
    from marco_search.cli.session import session
    from producer import Producer

    max_queued = None if limit == "default" else int(limit)
    with session(starts_afresh=True) as here, Producer(settings=here.settings) as producer:
        producer.set_quota(max_queued, tenant)
    if as_json:
        print_json({"tenant": tenant, "max_queued": max_queued})
    else:
        echo(f"{tenant}: {'as the settings have it' if max_queued is None else max_queued}")


def _list(tenant: str | None, as_json: bool) -> None:
    from marco_search.cli.session import session
    from marco_search.store.queue import limits

    with session(needs_redis=False) as here, here.database.transaction() as conn:
        found = limits.quotas(conn)
    if tenant is not None:
        found = {tenant: found[tenant]} if tenant in found else {}
    default = here.settings.tenant_max_queued
    if as_json:
        print_json({"quotas": found, "default": default})
        return
    for name, most in found.items():
        echo(f"{name}: {most:,}")
    echo(f"{'others' if found else tenant or 'all tenants'}: {_shown(default)}")


def _shown(default: int | None) -> str:
    return "no quota of their own" if default is None else f"{default:,}"
