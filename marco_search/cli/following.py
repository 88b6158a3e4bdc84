"""Following jobs until they end: on a live screen, as a log, or quietly."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from threading import Event
from typing import TYPE_CHECKING
from uuid import UUID

from rich.live import Live

from marco_search.cli.job_text import event, live_view
from marco_search.cli.output import as_json, console, print_json_line, show
from marco_search.store.reads import queries
from marco_search.store.reads.queries import JobStatus

if TYPE_CHECKING:
    from producer import Producer

_LARGEST_SHARE = 0.1  # of the time may be spent asking, however many jobs are followed


def follow(
    producer: Producer,
    job_ids: Sequence[UUID],
    *,
    timeout_s: float | None = None,
    every_s: float = 0.3,
) -> Iterator[list[JobStatus]]:
    """Where the jobs stand: now, when one of them ends, and every `every_s` seconds.

    Ends when all have ended. Raises WaitTimeout after `timeout_s` seconds, when jobs are left.
    """
    from producer.pending import Pending

    pending, found, heard = Pending(job_ids, timeout_s), dict[UUID, JobStatus](), Event()
    with producer.listener.subscribed(lambda _: heard.set()):
        while pending.ids:
            heard.clear()
            asked = time.monotonic()
            with producer.database.transaction() as conn:
                lines = queries.statuses(conn, list(pending.ids))
            took = time.monotonic() - asked
            found |= {line.job_id: line for line in lines}
            for line in lines:
                if line.final:
                    pending.done(line.job_id)
            yield [found[job_id] for job_id in job_ids]
            if pending.ids:
                time.sleep(min(took / _LARGEST_SHARE, pending.patience()))
                heard.wait(min(every_s, pending.patience()))
                pending.heard([None])


def show_following(
    states: Iterable[list[JobStatus]],
    *,
    quiet: bool = False,
    check: Callable[[], None] = lambda: None,
) -> list[JobStatus]:
    """Show what `follow` gives: live at a terminal, else a line for each change of a state.

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
