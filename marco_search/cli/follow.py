"""Showing jobs as they go: live at a terminal, one line for each change elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from uuid import UUID

from rich.live import Live

from marco_search.cli.output import console
from marco_search.cli.polling import news, poll
from marco_search.cli.render.jobs import event
from marco_search.cli.render.progress import live_view
from marco_search.store.db import Database
from marco_search.store.reads.queries import JobStatus


def follow(
    database: Database,
    job_ids: Sequence[UUID],
    *,
    timeout_s: float | None = None,
    on_change: Callable[[JobStatus], None] | None = None,
    before: Callable[[], None] = lambda: None,
) -> list[JobStatus]:
    """Show the jobs until all have ended; where they stand then.

    `on_change`, if given, is called for each change of a state, and nothing else is shown.
    `before` is called before each look and may raise. Raises WaitTimeout.
    """
    out = console()
    live = out.is_terminal and on_change is None
    changed = news(job_ids)
    lines: list[JobStatus] = []
    if not job_ids:
        return lines
    # Drawn by hand: a thread that redraws would only repeat what is there.
    screen = Live(console=out, auto_refresh=False, transient=True) if live else None
    with screen or nullcontext():
        for found in poll(database, job_ids, timeout_s=timeout_s, before=before):
            lines = found
            fresh = changed(lines)
            if screen is not None:
                view = live_view(lines, width=out.width, height=out.height)
                screen.update(view, refresh=True)
                continue
            for line in fresh:
                if on_change is not None:
                    on_change(line)
                else:
                    out.print(event(line))
    return lines
