"""`marco doctor`: what is reachable, what is wrong, and how to mend it."""

from __future__ import annotations

import dataclasses

import click

from marco_search.cli.output import json_option, print_json, show

_UNWELL = 4  # as for a service that does not answer


@click.command(short_help="Say what is reachable and what is wrong.")
@json_option
def doctor(as_json: bool) -> None:
    """Say what is reachable, what is wrong, and how to mend it. Exits with 4 if anything is.

    Nothing is started and nothing is changed.
    """
    from marco_search import settings
    from marco_search.cli.render.findings import findings
    from marco_search.local.doctor import run_checks

    found = run_checks(settings.load())
    well = all(finding.ok for finding in found)
    if as_json:
        checks = [dataclasses.asdict(finding) for finding in found]
        print_json({"ok": well, "checks": checks})
    else:
        show(findings(found))
    if not well:
        click.get_current_context().exit(_UNWELL)
