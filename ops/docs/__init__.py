"""docs/sql.md: its questions with their queries, and its generated part, the picture and views."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from psycopg import Connection, postgres

from marco_search import schema

PAGE = Path(__file__).resolve().parents[2] / "docs" / "sql.md"

_QUESTION = re.compile(r"^### (\d+)\. (.+?)\n\n(.+?)\n\n```sql\n(.+?)\n```$", re.M | re.S)
BEGIN = "<!-- made by `python -m ops.docs`: the picture and the views -->"
END = "<!-- end -->"


@dataclass(frozen=True, slots=True)
class Question:
    """A question in words, what its answer shows, and the query that gives it."""

    number: int
    title: str
    text: str
    sql: str

    @property
    def about_one_job(self) -> bool:
        """Whether the query names a job, as :'job'."""
        return ":'job'" in self.sql


def read(page: Path = PAGE) -> list[Question]:
    """All questions of the page, in order."""
    found = _QUESTION.findall(page.read_text())
    return [Question(int(number), title, text, sql) for number, title, text, sql in found]


def updated(page: str, conn: Connection[Any]) -> str:
    """`page` with its generated part as the schema and a database's views have it."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    assert after, f"the page has no {BEGIN} ... {END}"
    return "\n".join([before + BEGIN, "", *_picture(), "", *_views(conn), "", END + after])


def _picture() -> Iterator[str]:
    yield "The tables. Nodes, rollouts and answers each name the attempt that wrote them."
    yield ""
    yield "```mermaid"
    yield "erDiagram"
    tables = schema.TABLES.values()
    for table in tables:
        yield from _relations(table)
    for table in tables:
        yield from _entity(table)
    yield "```"


_VIEWS = """
    SELECT v.relname, obj_description(v.oid), a.attname, col_description(v.oid, a.attnum)
    FROM pg_class AS v JOIN pg_attribute AS a ON a.attrelid = v.oid AND a.attnum > 0
    WHERE v.relnamespace = 'audit'::regnamespace ORDER BY v.oid, a.attnum
"""


def _views(conn: Connection[Any]) -> Iterator[str]:
    yield "The views, in the schema `audit`; psql's `\\d+` shows the same comments."
    rows = conn.execute(_VIEWS).fetchall()
    for (name, about), columns in groupby(rows, lambda row: row[:2]):
        yield from ("", f"**`audit.{name}`**: {about}.", "", "| column | |", "|---|---|")
        for _, _, column, comment in columns:
            yield f"| `{column}` | {comment} |"


def _relations(table: schema.Table) -> Iterator[str]:
    for other in sorted(
        {c.references.split(".")[0] for c in table.columns.values() if c.references}
    ):
        yield f"    {other} ||--o{{ {table.name} : has"


def _entity(table: schema.Table) -> Iterator[str]:
    yield f"    {table.name} {{"
    for column in table.columns.values():
        base = column.type.removesuffix("[]")
        kind = postgres.types[base].regtype + column.type.removeprefix(base)
        word = kind.replace(" precision", "").replace("timestamp with time zone", "timestamptz")
        key = " PK" if column.key else " FK" if column.references else ""
        yield f'        {word} {column.name}{key} "{column.comment}"'
    yield "    }"
