"""What a view is, and the SQL that makes it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

SCHEMA = "audit"
"""The schema of all views: the public SQL interface."""

JOB = {"job_id": "The job"}


@dataclass(frozen=True, slots=True)
class View:
    """A view: the comments by column name, in the order of its columns.

    `query` names every table and view with its schema.
    """

    name: str
    comment: str
    columns: dict[str, str]
    query: str

    def statements(self) -> Iterator[str]:
        """SQL that creates it and its comments.

        `security_invoker`: it shows a reader no more than the tables would.
        """
        columns = ", ".join(self.columns)
        options = "WITH (security_invoker = true)"
        yield f"CREATE VIEW {SCHEMA}.{self.name} ({columns}) {options} AS {self.query}"
        yield f"COMMENT ON VIEW {SCHEMA}.{self.name} IS {literal(self.comment)}"
        for column, comment in self.columns.items():
            yield f"COMMENT ON COLUMN {SCHEMA}.{self.name}.{column} IS {literal(comment)}"


def literal(text: str) -> str:
    """`text` as SQL writes it."""
    return "'" + text.replace("'", "''") + "'"
