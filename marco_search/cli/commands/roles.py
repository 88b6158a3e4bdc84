"""`marco roles`: the database's roles and their rights."""

from __future__ import annotations

import click

from marco_search.cli.output import console, echo, json_option, print_json


@click.command(short_help="Make the database's roles.")
@click.option("--sql", "as_sql", is_flag=True, help="Print the SQL instead of running it.")
@json_option
def roles(as_sql: bool, as_json: bool) -> None:
    """Make the roles owner, app, auditor and auditor_all, and give each its rights.

    `marco migrate` does the same where its user may. Where it may not, a superuser runs this
    once (DATABASE_URL names it), or runs the SQL that --sql prints. docs/sql.md says who may
    do what, and how a person becomes an auditor.
    """
    from marco_search import settings
    from marco_search.cli.session import session
    from marco_search.store.roles import ROLES, name, statements

    prefix = settings.load().role_prefix
    names = [name(prefix, role) for role in ROLES]
    if as_sql:
        echo("BEGIN;")
        for statement in statements(prefix):
            echo(f"{statement.strip()};")
        echo("COMMIT;")
        return
    from marco_search.errors import RightsMissing
    from marco_search.locations import database_url
    from marco_search.migrations import grant_roles

    with session(starts_afresh=True, migrates=True) as here:
        refused = grant_roles(database_url(here.settings))
    if refused is not None:
        raise RightsMissing(f"{refused}: {WHO}")
    if as_json:
        print_json({"roles": names})
    else:
        console().print("Made, with their rights: " + ", ".join(names))


WHO = "a superuser can run `marco roles`, or the SQL that `marco roles --sql` prints"
