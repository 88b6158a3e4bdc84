"""What a view is, and the SQL that makes it."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass

from sqlalchemy import Table

SCHEMA = "audit"
"""The schema of all views: the public SQL interface."""

JOB = {"job_id": "The job"}

Columns = dict[str, tuple[str, str]]
"""By name: the expression, and the comment."""


@dataclass(frozen=True, slots=True)
class View:
    """A view.

    Attributes:
        name: Its name in SCHEMA.
        comment: What it shows.
        columns: The comments by column name, in the order of its columns.
        query: What it selects; names every table and view with its schema.
    """

    name: str
    comment: str
    columns: Mapping[str, str]
    query: str

    def statements(self) -> Iterator[str]:
        """SQL that creates it and its comments.

        `security_invoker`: it shows a reader no more than the tables would.
        """
        columns = ", ".join(self.columns)
        options = "WITH (security_invoker = true)"
        yield f"CREATE VIEW {SCHEMA}.{self.name} ({columns}) {options} AS {self.query}"
        yield comment(f"VIEW {SCHEMA}.{self.name}", self.comment)
        for column, text in self.columns.items():
            yield comment(f"COLUMN {SCHEMA}.{self.name}.{column}", text)


def selected(name: str, what: str, columns: Columns, source: str) -> View:
    """The view of these columns of `source`."""
    expressions = ", ".join(expression for expression, _ in columns.values())
    comments = {column: text for column, (_, text) in columns.items()}
    return View(name, what, comments, f"SELECT {expressions} FROM {source}")  # noqa: S608


def stored(table: Table, alias: str = "", *, without: Container[str] = ()) -> Columns:
    """The columns of a table as they are stored and described there."""
    prefix = f"{alias}." if alias else ""
    return {
        c.name: (f"{prefix}{c.name}", str(c.comment))
        for c in table.columns
        if c.name not in without
    }


def comment(on: str, text: str | None) -> str:
    """SQL that comments on an object."""
    escaped = (text or "").replace("'", "''")
    return f"COMMENT ON {on} IS '{escaped}'"
