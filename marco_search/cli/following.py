"""Following jobs until they end: on a live screen, as a log, or quietly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext

from rich.live import Live

from marco_search.cli.job_text import event, live_view
from marco_search.cli.output import as_json, console, print_json_line, show
from marco_search.store.reads.queries import JobStatus


def show_following(
    states: Iterable[list[JobStatus]],
    *,
    quiet: bool = False,
    check: Callable[[], None] = lambda: None,
) -> list[JobStatus]:
    """Show what `Producer.follow` gives: live at a terminal, else a line for each change.

    The last of it. With --json the lines are JSON; with `quiet` there are none. `check` is
    called at each look and may raise.
    """
    out, last = console(), list[JobStatus]()
    live = out.is_terminal and not as_json() and not quiet
    # Drawn by hand: a thread that redraws would only repeat what is there.
    screen = Live(console=out, auto_refresh=False, transient=True) if live else None
    with screen or nullcontext():
        for lines in states:
            check()
            if screen is not None:
                view = live_view(lines, width=out.width, height=out.height)
                screen.update(view, refresh=True)
            for line in () if live or quiet else changed(last, lines):
                print_json_line(line.model_dump(mode="json")) if as_json() else show(event(line))
            last = lines
    return last


def changed(before: Sequence[JobStatus], now: Sequence[JobStatus]) -> list[JobStatus]:
    """The jobs whose state is not what it was; at first, those that are no longer queued."""
    states = {line.job_id: line.state for line in before}
    return [line for line in now if line.state != states.get(line.job_id, "queued")]
