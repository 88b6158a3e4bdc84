"""The generated part of docs/sql.md: the schema as a picture, and the views in words."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Table
from sqlalchemy.dialects import postgresql

from marco_search import schema
from marco_search.store import views

BEGIN = "<!-- made by `python -m ops.docs`: the picture and the views -->"
END = "<!-- end -->"


def updated(page: str) -> str:
    """`page` with its generated part as the models have it."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    assert after, f"the page has no {BEGIN} ... {END}"
    return "\n".join([before + BEGIN, "", *_lines(), "", END + after])


def _lines() -> Iterator[str]:
    yield "The tables. Nodes, rollouts and answers each name the attempt that wrote them."
    yield ""
    yield "```mermaid"
    yield "erDiagram"
    tables = schema.metadata.sorted_tables
    for table in tables:
        yield from _relations(table)
    for table in tables:
        yield from _entity(table)
    yield "```"
    yield ""
    yield f"The views, in the schema `{views.SCHEMA}`; psql's `\\d+` shows the same comments."
    for view in views.VIEWS:
        yield ""
        yield f"**`{views.SCHEMA}.{view.name}`**: {view.comment}."
        yield ""
        yield "| column | |"
        yield "|---|---|"
        for column, comment in view.columns.items():
            yield f"| `{column}` | {comment} |"


def _relations(table: Table) -> Iterator[str]:
    for other in sorted({key.column.table.name for key in table.foreign_keys}):
        yield f"    {other} ||--o{{ {table.name} : has"


def _entity(table: Table) -> Iterator[str]:
    yield f"    {table.name} {{"
    for column in table.columns:
        kind = column.type.compile(postgresql.dialect()).lower()  # type: ignore[no-untyped-call]
        word = kind.replace(" precision", "").replace("timestamp with time zone", "timestamptz")
        key = " PK" if column.primary_key else " FK" if column.foreign_keys else ""
        yield f'        {word} {column.name}{key} "{column.comment}"'
    yield "    }"
