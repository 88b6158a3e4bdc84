"""The life of a job.

    queued ──claim──> running ──> succeeded | failed | cancelled | expired | dead
       ^                 │
       └─release, retry──┘
         reclaim

A worker that stops, and a pause, release the job: it is queued as it was. A retryable error
puts it back with a later `run_after`. A lease that runs out is reclaimed by the sweep. A job
is `expired` when its deadline came first, with the best answers it had by then, and `dead`
when it used up its attempts or cost several workers. Only `failed` and `dead` can be left
again: an operator may requeue such a job.
"""

from __future__ import annotations

from datetime import datetime

from marco_search.jobs.results import JobState as JobState
from marco_search.kinds import subject_fields

GIVEN_UP = (JobState.FAILED, JobState.DEAD)
"""States of the dead letters: only an operator takes a job out of them."""

FINAL = (JobState.SUCCEEDED, JobState.CANCELLED, JobState.EXPIRED, *GIVEN_UP)
"""States in which nothing is done for a job any more."""

PRIORITIES = {"high": 0, "normal": 3, "low": 6}
"""A job's priority as stored."""

_SUBJECTS = ", ".join(f"payload ->> '{name}'" for name in subject_fields())
SUBJECT = f"coalesce({_SUBJECTS})"
"""What a job of any kind asks, in SQL."""

CHANNEL = "marco_jobs"
"""NOTIFY channel: the id of each job that reached a final state."""


def shown_state(state: str, paused_at: datetime | None) -> str:
    """The state as people see it: "paused" for one that waits to be let go on."""
    return "paused" if state == JobState.QUEUED and paused_at is not None else str(state)
