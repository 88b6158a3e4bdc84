"""`marco sql`: a read-only query on the jobs and their trees."""

from __future__ import annotations

import sys

import click

from marco_search.cli import output
from marco_search.cli.options import Seconds, command, count
from marco_search.cli.session import session
from marco_search.cli.sql_rows import rows_csv, rows_json, rows_table
from marco_search.store.reads.reader_sql import run_query, with_values

TABLE_ROWS = 1000  # a table is for reading: more is for a file


@command()
@click.argument("query")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@click.option(
    "--limit", type=count(), metavar="N",
    help=f"Rows at most; 0 for all (default: {TABLE_ROWS} in a table, all in JSON and CSV).",
)  # fmt: skip
@click.option(
    "--timeout", type=Seconds(min=0, min_open=True, max=86_400), default=30.0, show_default=True,
    metavar="S", help="Seconds after which the query is stopped.",
)  # fmt: skip
@click.option(
    "--set", "given", multiple=True, metavar="NAME=VALUE", help="A value for :'NAME' in the query."
)
def sql(
    query: str, as_csv: bool, limit: int | None, timeout: float, given: tuple[str, ...]
) -> None:
    """Run QUERY, one SQL statement that returns rows. "-" reads it from standard input.

    It runs in a read-only transaction that is rolled back. Views made for reading: audit.jobs,
    audit.answers, audit.tree, audit.rollouts, audit.tokens, audit.attempts, audit.events,
    audit.tenant_usage and more. docs/sql.md describes them, with a query for each question.

    \b
    marco sql "select count(*) from nodes"
    marco sql --set job=ID "select * from audit.answers where job_id = :'job'"
    marco sql "select answer, correct, seconds from audit.jobs order by seconds desc"
    """
    if output.as_json() and as_csv:
        raise click.UsageError("--json and --csv exclude each other.")
    text = sys.stdin.read() if query == "-" else query
    if wrong := [word for word in given if "=" not in word]:
        raise click.UsageError(f"--set {wrong[0]}: write NAME=VALUE.")
    text = with_values(text, dict(word.split("=", 1) for word in given))
    if limit is None:
        limit = 0 if output.as_json() or as_csv else TABLE_ROWS
    with session(needs_redis=False) as here, here.database.connect() as conn:
        result = run_query(conn, text, limit=limit or None, timeout_s=timeout)
    columns, rows = result.columns, result.rows
    if output.as_json():
        output.print_json(rows_json(columns, rows))
    elif as_csv:
        output.echo(rows_csv(columns, rows), end="")
    else:
        width = output.terminal_width() if sys.stdout.isatty() else None
        output.show(rows_table(columns, rows, width=width))
        counted = f"{len(rows):,} row{'' if len(rows) == 1 else 's'}"
        more = f"the first {counted}; --limit 0 prints all"
        output.note(f"({more if result.more else counted})")
