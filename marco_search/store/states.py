"""The life of a job.

    queued ──claim──> running ──> succeeded | failed | cancelled | dead
       ^                 │
       └──retry, lease───┘

A retryable error puts the job back to queued with a later `run_after`. A lease that runs
out leaves it running; the next claim takes it over. `dead` is the end of a job that used
up its attempts.
"""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DEAD = "dead"


FINAL = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.DEAD)
"""States that a job never leaves."""

PRIORITIES = {"high": 0, "normal": 3, "low": 6}
"""A job's priority as stored, and as the broker's priority step: 0 is served first."""

CHANNEL = "marco_jobs"
"""NOTIFY channel: the id of each job that reached a final state."""
