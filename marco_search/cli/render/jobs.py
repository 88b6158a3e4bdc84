"""Jobs as a table, as lines of a log, and as counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from marco_search.cli.render.tables import Column, number, text_table
from marco_search.cli.render.text import ELLIPSIS, fraction, one_line, percent
from marco_search.render.layout import short_id

if TYPE_CHECKING:
    from marco_search.store.reads.queries import JobStatus

LONGEST_SUBJECT = 1000  # characters: the whole of it is in --json


def heading(line: JobStatus) -> list[Text]:
    """What the job is: its whole id and state, and what was asked."""
    attempts = f", attempt {line.attempts}" if line.attempts > 1 else ""
    progress = ""
    if not line.final:
        progress = f", {line.rollouts} of {line.rollout_budget or '?'} rollouts"
    return [
        Text(
            f"job {line.job_id}  {line.kind}, {line.shown_state}{attempts}{progress}", style="dim"
        ),
        Text(shortened(one_line(line.subject))),
    ]


def shortened(text: str) -> str:
    """A question of pages would push the answer off the screen."""
    if len(text) <= LONGEST_SUBJECT:
        return text
    return f"{text[:LONGEST_SUBJECT]}{ELLIPSIS} ({len(text):,} characters)"


def archived(line: JobStatus, month: str) -> list[Text]:
    """What is left to say of a job whose tree has left the database."""
    return [
        Text(one_line(line.answer or "no answer"), style="bold"),
        Text(""),
        Text(
            f"Its ranked answers, {line.rollouts:,} rollouts and {line.nodes:,} nodes are in the "
            f"archive of {month}; `marco verify --archive FOLDER/{month}` checks that.",
            style="dim",
        ),
    ]


def yes_no(value: bool | None) -> str:
    """ "yes", "no", or "" for unknown."""
    return {True: "yes", False: "no", None: ""}[value]


def jobs_table(
    lines: Sequence[JobStatus], *, width: int | None = None, with_state: bool = True
) -> Table:
    """One row for each job, with what it has come to so far."""
    columns = [
        Column("job"),
        Column("state"),
        Column("question", flexible=True),
        Column("answer", flexible=True),
        Column("expected", flexible=True),
        Column("right"),
        number("conf."),
        number("share"),
        number("quant."),
        number("tokens", optional=True),
        number("seconds", optional=True),
        number("nodes", optional=True),
    ]
    rows, sums = [_row(line) for line in lines], _sums(lines)
    if not with_state:
        columns = [*columns[:1], *columns[2:]]
        rows = [[*row[:1], *row[2:]] for row in rows]
        sums = sums and [*sums[:1], *sums[2:]]
    return text_table(columns, rows, width=width, footer=sums)


def _row(line: JobStatus) -> list[str]:
    return [
        short_id(line.job_id),
        line.shown_state,
        one_line(line.subject),
        one_line(line.answer or line.error or ""),
        one_line(line.expected or ""),
        yes_no(line.correct),
        "" if line.confidence is None else fraction(line.confidence),
        percent(line.share),
        percent(line.confidence_quantile),
        f"{line.generated_tokens:,}",
        f"{line.seconds:.1f}",
        str(line.nodes),
    ]


def _sums(lines: Sequence[JobStatus]) -> list[str] | None:
    if len(lines) < 2:
        return None
    checked = [line for line in lines if line.correct is not None]
    right = sum(1 for line in checked if line.correct)
    return [
        f"{len(lines)} jobs", "", "", "", "",
        f"{right}/{len(checked)}" if checked else "",
        "", "", "",
        f"{sum(line.generated_tokens for line in lines):,}",
        f"{sum(line.seconds for line in lines):.1f}",
        str(sum(line.nodes for line in lines)),
    ]  # fmt: skip


def certainty(line: JobStatus) -> list[str]:
    """How sure the answer is: its confidence, and its share of the vote where one is known."""
    share = [] if line.share is None else [f"{line.share:.0%} of the vote"]
    return [fraction(line.confidence), *share]


def counts(by_state: Mapping[str, int]) -> str:
    """ "16 jobs: 1 running, 15 succeeded"."""
    total = sum(by_state.values())
    parts = ", ".join(f"{count:,} {state}" for state, count in by_state.items())
    return f"{total:,} job{'' if total == 1 else 's'}" + (f": {parts}" if parts else "")


def event(line: JobStatus) -> str:
    """One line of a log: a job and the state it has come to."""
    text = f"{short_id(line.job_id)}  {line.state:9}"
    if line.answer is not None:
        text += f"  {one_line(line.answer)}"
        if line.confidence is not None:
            text += f"  ({', '.join(certainty(line))})"
    elif line.error:
        text += f"  {one_line(line.error)}"
    return text.rstrip()
