"""How callers name a job they have submitted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from marco_search.errors import JobNotFound
from marco_search.jobs.validation import shown
from marco_search.store.queue.states import JobState


@dataclass(frozen=True, slots=True, kw_only=True)
class JobHandle:
    """A job that is stored. `state` is what it was when it was submitted."""

    id: UUID
    state: JobState
    created: bool  # False: its idempotency key named a job that was there already

    def __str__(self) -> str:
        return str(self.id)


JobId = JobHandle | UUID | str
"""What names a job: what `submit` gave, or its id."""


def job_uuid(job: JobId) -> UUID:
    """The job's id. Raises JobNotFound for text that is no id, TypeError for what is no text."""
    if isinstance(job, UUID):
        return job
    if isinstance(job, JobHandle):
        return job.id
    if not isinstance(job, str):
        raise TypeError(f"a job is named by what submit returned or by its id, not by {job!r}")
    try:
        return UUID(job)
    except ValueError:
        raise JobNotFound(f"invalid job id {shown(job)}; an id looks like {UUID(int=0)}") from None


def job_uuids(jobs: JobId | Iterable[JobId]) -> list[UUID]:
    """The ids of one job or of several, in the order given."""
    if isinstance(jobs, JobHandle | UUID | str):
        return [job_uuid(jobs)]
    if not isinstance(jobs, Iterable):
        raise TypeError(f"jobs are named by one id or by several, not by {jobs!r}")
    return [job_uuid(job) for job in jobs]
