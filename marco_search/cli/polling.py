"""Following jobs until they end, by asking Postgres now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from uuid import UUID

from marco_search.errors import WaitTimeout
from marco_search.store.db import Database
from marco_search.store.reads import queries
from marco_search.store.reads.queries import JobStatus

_INTERVAL_S = 0.3
_LARGEST_SHARE = 0.1  # of the time may be spent asking, however many jobs are followed


def poll(
    database: Database,
    job_ids: Sequence[UUID],
    *,
    timeout_s: float | None = None,
    interval_s: float = _INTERVAL_S,
    before: Callable[[], None] = lambda: None,
) -> Iterator[list[JobStatus]]:
    """Where the jobs stand, again and again, until all have ended.

    `before` is called before each look and may raise. Raises WaitTimeout after `timeout_s`
    seconds, when jobs are left.
    """
    began = time.monotonic()
    while True:
        before()
        asked = time.monotonic()
        with database.transaction() as conn:
            lines = queries.statuses(conn, job_ids)
        yield lines
        left = sum(1 for line in lines if not line.final)
        if not left:
            return
        now = time.monotonic()
        if timeout_s is not None and now - began >= timeout_s:
            said = f"{left} of {len(lines)} jobs are" if len(lines) > 1 else "the job is"
            it = "they go" if left > 1 else "it goes"
            raise WaitTimeout(f"{said} not done after {timeout_s:g} s; {it} on (marco status)")
        pause = max(interval_s, (now - asked) / _LARGEST_SHARE)
        if timeout_s is not None:
            pause = min(pause, max(0.0, began + timeout_s - now))
        time.sleep(pause)


def news(job_ids: Sequence[UUID]) -> Callable[[Sequence[JobStatus]], list[JobStatus]]:
    """A function that returns those of the lines whose state has changed since its last call."""
    seen: dict[UUID, str] = dict.fromkeys(job_ids, "queued")

    def changed(lines: Sequence[JobStatus]) -> list[JobStatus]:
        fresh = [line for line in lines if seen[line.job_id] != line.state]
        seen.update({line.job_id: line.state for line in fresh})
        return fresh

    return changed
