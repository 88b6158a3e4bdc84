"""The questions of docs/sql.md with their queries."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "sql.md"

_QUESTION = re.compile(r"^### (\d+)\. (.+?)\n\n(.+?)\n\n```sql\n(.+?)\n```$", re.M | re.S)


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
