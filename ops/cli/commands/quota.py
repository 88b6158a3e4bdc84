"""`marco quota`: how many jobs a tenant may have queued."""

from __future__ import annotations

import click

from ops.cli.output import echo, json_option, print_json


@click.command(short_help="Limit a tenant's queued jobs.")
@click.argument("tenant", metavar="TENANT")
@click.argument("limit", metavar="N|default")
@json_option
def quota(tenant: str, limit: str, as_json: bool) -> None:
    """Let TENANT have at most N queued jobs; "default": as MARCO_TENANT_MAX_QUEUED has it.

    What is queued already stays. Whoever submits more is refused and told to try later.
    """
    if limit != "default" and not limit.isdecimal():
        raise click.UsageError(f'{limit!r} is no number of jobs; give one, or "default".')
    from ops.cli.session import session
    from producer import Producer

    max_queued = None if limit == "default" else int(limit)
    with session(starts_afresh=True) as here, Producer(settings=here.settings) as producer:
        producer.set_quota(max_queued, tenant)
    if as_json:
        print_json({"tenant": tenant, "max_queued": max_queued})
    else:
        echo(f"{tenant}: {'as the settings have it' if max_queued is None else max_queued}")
