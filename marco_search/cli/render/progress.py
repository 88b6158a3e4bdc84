"""Jobs under way, for a terminal that is drawn again and again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from marco_search.cli.render.jobs import counts, yes_no
from marco_search.cli.render.tables import Column, number, text_table
from marco_search.cli.render.text import one_line
from marco_search.render.layout import short_id

if TYPE_CHECKING:
    from marco_search.store.reads.queries import JobStatus

_BAR = 10  # cells
_ORDER = {"running": 0, "queued": 2}


def live_view(lines: Sequence[JobStatus], *, width: int, height: int) -> RenderableType:
    """A row for each job, as many as fit (those running first), and a line of counts."""
    rows = max(1, height - 4)
    shown = list(lines)
    if len(shown) > rows:
        # What ends last is most likely to be looked for: running, then just ended, then waiting.
        newest = sorted(shown, key=lambda line: line.finished_at or line.created_at, reverse=True)
        shown = sorted(newest, key=lambda line: _ORDER.get(line.state, 1))[:rows]
    columns = [
        Column("job"),
        Column("state"),
        Column("rollouts"),
        Column("question", flexible=True),
        Column("answer", flexible=True),
        Column("right"),
        number("seconds"),
    ]
    table = text_table(columns, [_row(line) for line in shown], width=width)
    return Group(table, "", Text(progress(lines)))


def progress(lines: Sequence[JobStatus]) -> str:
    """ "16 jobs: 1 running, 15 succeeded; 1,204 tokens"."""
    by_state = Counter(str(line.state) for line in lines)
    tokens = sum(line.generated_tokens for line in lines)
    return f"{counts(dict(sorted(by_state.items())))}; {tokens:,} tokens"


def _row(line: JobStatus) -> list[str]:
    return [
        short_id(line.job_id),
        line.shown_state,
        _bar(line),
        one_line(line.subject),
        one_line(line.answer or line.error or ""),
        yes_no(line.correct),
        f"{line.seconds:.1f}" if line.seconds else "",
    ]


def _bar(line: JobStatus) -> str:
    if line.final or not line.rollout_budget:
        return str(line.rollouts) if line.rollouts else ""
    done = min(_BAR, _BAR * line.rollouts // line.rollout_budget)
    return "#" * done + "-" * (_BAR - done)
