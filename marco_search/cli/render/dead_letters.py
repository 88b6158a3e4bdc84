"""Jobs that were given up, as a table and one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from marco_search.cli.render.tables import Column, number, text_table
from marco_search.cli.render.text import one_line
from marco_search.render.layout import short_id

if TYPE_CHECKING:
    from marco_search.store.queue.dead_letters import DeadLetter


def letters_table(letters: Sequence[DeadLetter], *, width: int | None = None) -> Table:
    """One row for each."""
    columns = [
        Column("job"),
        Column("state"),
        Column("error"),
        Column("message", flexible=True),
        Column("question", flexible=True),
        number("attempts"),
        number("rounds"),
    ]
    rows = [
        [
            short_id(letter.job_id),
            letter.state,
            one_line(str(letter.error.get("type", ""))),
            one_line(str(letter.error.get("message", ""))),
            one_line(letter.subject),
            str(letter.attempts),
            str(letter.rounds),
        ]
        for letter in letters
    ]
    return text_table(columns, rows, width=width)


def letter_report(letter: DeadLetter) -> list[Text]:
    """Why it was given up, what it cost, and the traceback of a bug."""
    lines = [
        f"job {letter.job_id}  {letter.kind}, {letter.state} since {letter.finished_at:%F %T} UTC",
        one_line(letter.subject),
        "",
        f"{letter.error.get('type', 'no error')}: {one_line(str(letter.error.get('message', '')))}",
        f"{letter.attempts} attempts, of which {letter.failures} failed and {letter.losses} lost "
        f"their worker; {letter.rounds} rounds are kept",
    ]
    trace = str(letter.error.get("traceback", "")).splitlines()
    if trace:
        indents = [" " * (len(line) - len(line.lstrip(" "))) for line in trace]
        lines += ["", *(i + one_line(line) for i, line in zip(indents, trace, strict=True))]
    return [Text(line) for line in lines]
