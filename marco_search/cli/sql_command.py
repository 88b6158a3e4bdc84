"""`marco sql`: a read-only query, as a table, CSV or JSON; `marco psql`: a session."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from functools import partial
from itertools import zip_longest
from typing import Any, Literal
from uuid import UUID

import click
from psycopg.conninfo import make_conninfo
from rich.cells import cell_len
from rich.console import RenderableType
from rich.text import Text

from marco_search.cli import output
from marco_search.cli.options import PAIR, Finite, JsonCommand, Pairs, command, count
from marco_search.cli.output import Column, natural_widths, text_table
from marco_search.cli.session import session
from marco_search.errors import LocalServiceFailed, MarcoError
from marco_search.locations import database_url
from marco_search.render.layout import one_line
from marco_search.store import postgres
from marco_search.store.reads.reader_sql import JsonText, run_query, with_values
from marco_search.text import counted

TABLE_ROWS = 1000  # a table is for reading: more is for a file
_READABLE = 24  # cells of a text that a table at a terminal may cut it to
_LONGEST_LINE = 200  # cells of a table's line in a pipe
_LEAST_VALUE = 20  # cells, however long the names of the columns
_DECIMALS = 6  # so many were asked for, as by round(): their zeros stay; an average has 16
_MOST_DIGITS = 4300  # of a whole number that Python writes
Rows = Sequence[Sequence[Any]]


@command()
@click.argument("query")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@click.option(
    "-x/-t", "--expanded/--table", default=None,
    help="A line for each column, or a line for each row (default: what fits the width).",
)  # fmt: skip
@click.option(
    "--limit", type=count(), metavar="N",
    help=f"Maximum rows; 0 for all (default: {TABLE_ROWS} in a table, all in JSON and CSV).",
)  # fmt: skip
@click.option(
    "--timeout", type=Finite(min=0, min_open=True, max=86_400), default=30.0, metavar="S",
    help="Seconds after which the query is stopped.",
)  # fmt: skip
@click.option(
    "--set", "given", type=PAIR, multiple=True, metavar="NAME=VALUE",
    help="A value for :'NAME' in the query; repeatable.",
)  # fmt: skip
def sql(
    query: str, as_csv: bool, expanded: bool | None, limit: int | None, timeout: float,
    given: Pairs,
) -> None:  # fmt: skip
    """Run QUERY, one SQL statement that returns rows. "-" reads it from standard input.

    It runs in a read-only transaction that is rolled back. Views made for reading: audit.jobs,
    audit.answers, audit.tree, audit.rollouts, audit.tokens, audit.attempts, audit.events,
    audit.tenant_usage and more. docs/sql.md describes them, with example queries.

    \b
    marco sql "select count(*) from nodes"
    marco sql --set job=ID "select * from audit.answers where job_id = :'job'"
    marco sql "select answer, correct, seconds from audit.jobs order by seconds desc"
    """
    if output.as_json() and as_csv:
        raise click.UsageError("--json and --csv exclude each other.")
    text = sys.stdin.read() if query == "-" else query
    text = with_values(text, dict(given))
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
        if expanded or (expanded is None and too_wide(columns, rows, width)):
            output.show(*rows_expanded(columns, rows, width=width or output.PAGE_WIDTH))
        else:
            output.show(rows_table(columns, rows, width=width))
        shown = counted(len(rows), "row")
        more = f"the first {shown}; --limit 0 prints all"
        output.note(f"({more if result.more else shown})")


def rows_table(columns: Sequence[str], rows: Rows, *, width: int | None = None) -> RenderableType:
    """Numbers to the right, text on one line, NULL as an empty cell."""
    return text_table(_laid_out(columns, rows), rows, width=width)


def too_wide(columns: Sequence[str], rows: Rows, width: int | None) -> bool:
    """Whether a table of `width` cells would cut more than the ends of long texts.

    In a pipe (None) nothing is cut: it is whether lines would be too long to read.
    """
    if len(columns) == 1:
        return False
    laid_out = _laid_out(columns, rows)
    needed = [
        min(cells, _READABLE) if column.flexible and width is not None else cells
        for column, cells in zip(laid_out, natural_widths(laid_out, rows), strict=True)
    ]
    return sum(needed) + 2 * len(needed) > (width or _LONGEST_LINE)


def rows_expanded(columns: Sequence[str], rows: Rows, *, width: int) -> Iterator[Text]:
    """A line for each column of each row, as \\x of psql has it; long values go on below."""
    names = [one_line(name) for name in columns]
    indent = max(map(cell_len, names), default=0)
    room = max(_LEAST_VALUE, width - indent - 3)
    for number, row in enumerate(rows, start=1):
        yield Text(f"-[ {number} ]".ljust(width, "-"), style="dim")
        for i, name in enumerate(names):
            value = _field(row[i]) if isinstance(row[i], str) else _cell(i, row)
            lines = map(one_line, value.splitlines())
            parts = [part for line in lines for part in output.wrap_cells(line, room)]
            for part, head in zip_longest(parts, (name,), fillvalue=""):
                cells = f"{head}{' ' * (indent - cell_len(head))} | "
                yield Text(cells, style="dim").append(part, style="not dim")


def _laid_out(columns: Sequence[str], rows: Rows) -> list[Column]:
    found = []
    for i, name in enumerate(columns):
        types = {type(row[i]) for row in rows if row[i] is not None}
        numeric = bool(types) and types <= {int, float, Decimal}
        justify: Literal["left", "right"] = "right" if numeric else "left"
        whole = numeric or types == {UUID}  # half an id names nothing
        found.append(Column(one_line(name), partial(_cell, i), justify, flexible=not whole))
    return found


def rows_csv(columns: Sequence[str], rows: Rows) -> str:
    """CSV with a line of headings; arrays are JSON inside their field.

    NULL is an empty field, empty text is "". What is between quotes is the text as it is stored.
    """
    lines = [[_quoted(name) for name in columns]]
    lines += [["" if value is None else _quoted(_field(value)) for value in row] for row in rows]
    return "".join(",".join(line) + "\n" for line in lines)


def rows_json(columns: Sequence[str], rows: Rows) -> list[dict[str, Any]]:
    """One object for each row."""
    return [
        {name: as_json(value) for name, value in zip(columns, row, strict=True)} for row in rows
    ]


def as_json(value: Any) -> Any:
    """A value from Postgres as JSON has it; what JSON lacks becomes text."""
    match value:
        case JsonText():
            try:
                return as_json(json.loads(value))
            except (ValueError, RecursionError):  # more digits or levels than Python takes
                return str(value)
        case None | str() | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else str(value)  # JSON has no NaN
        case Decimal():
            return _number(value)
        case datetime():
            return value.isoformat()
        case list() | tuple():
            return [as_json(item) for item in value]
        case dict():
            return {str(name): as_json(item) for name, item in value.items()}
        case bytes() | memoryview():
            return bytes(value).hex()
        case _:
            return str(value)


def _number(value: Decimal) -> int | float | str:
    if not value.is_finite():
        return str(value)
    if value == value.to_integral_value() and value.adjusted() < _MOST_DIGITS:
        return int(value)
    return float(value) if math.isfinite(float(value)) else str(value)


def _cell(i: int, row: Sequence[Any]) -> str:
    match value := row[i]:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.6g}"
        case Decimal() if value.is_finite() and value.as_tuple().exponent < -_DECIMALS:  # type: ignore[operator]
            return f"{value:f}".rstrip("0").rstrip(".")
        case datetime():
            return value.isoformat(sep=" ", timespec="seconds")
        case _:
            return one_line(_field(value))


def _field(value: Any) -> str:
    plain = str(value) if isinstance(value, Decimal | JsonText) else as_json(value)
    return json.dumps(plain, ensure_ascii=False) if isinstance(plain, list | dict) else str(plain)


def _quoted(field: str) -> str:
    # The csv module leaves a carriage return bare, where other readers end the line.
    special = not field or any(character in field for character in ',"\r\n')
    return '"' + field.replace('"', '""') + '"' if special else field


@click.command(cls=JsonCommand, context_settings={"ignore_unknown_options": True})
@click.option("--print-url", is_flag=True, help="Print the URL with its password instead.")
@click.argument("arguments", metavar="[PSQL ARGUMENTS]...", nargs=-1, type=click.UNPROCESSED)
def psql(print_url: bool, arguments: tuple[str, ...]) -> None:
    """Open psql on the database: that of DATABASE_URL, or the embedded one.

    The password is not on psql's command line. --print-url is for other programs (DBeaver,
    Grafana); the embedded database serves them while `marco up` keeps it running.

    \b
    marco psql -c "SELECT state, count(*) FROM audit.jobs GROUP BY state"
    """
    with session(needs_redis=False) as here:
        url = database_url(here.settings)
        if print_url:
            output.report({"url": url}, url)
            return
        given = postgres.parameters(postgres.conninfo(url, "marco psql"))
        environment = os.environ | {"PGPASSWORD": given.pop("password", "")}
        given.pop("sslpassword", None)  # psql asks for it
        program = [_psql(), "-d", make_conninfo(**given), *arguments]
        signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is psql's
        code = subprocess.run(program, env=environment, check=False).returncode
    click.get_current_context().exit(code if code >= 0 else 128 - code)  # a signal's, as in shells


def _psql() -> str:
    """The path of psql: of this machine, else of the embedded Postgres."""
    from marco_search.local import programs

    if found := shutil.which("psql"):
        return found
    with suppress(LocalServiceFailed):
        return str((programs.installed() / programs.POSTGRES).with_name("psql"))
    raise MarcoError(
        "psql is not installed: install the package postgresql-client, use `marco sql`, or give "
        "another program the URL that `marco psql --print-url` prints"
    )
