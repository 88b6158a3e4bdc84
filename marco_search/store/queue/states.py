"""The life of a job.

    queued ──claim──> running ──> succeeded | failed | cancelled | expired | dead
       ^                 │
       └─release, retry──┘
         reclaim

A worker that shuts down, and a pause, release the job: it is queued as it was. A retryable error
puts it back with a later `run_after`. A lease that runs out is reclaimed by the scheduler. A job
is `expired` when its deadline came first, with the best answers it had by then, and `dead`
when it used up its attempts or cost several workers. Only `failed` and `dead` can be left
again: an operator may requeue such a job.
"""

from uuid import UUID

from marco_search.errors import JobNotFound
from marco_search.jobs import JobState as JobState
from marco_search.kinds import subject_fields

DEAD_LETTER = (JobState.FAILED, JobState.DEAD)
"""States of the dead letters: only an operator takes a job out of them."""

FINAL = (JobState.SUCCEEDED, JobState.CANCELLED, JobState.EXPIRED, *DEAD_LETTER)
"""States that a job does not leave by itself."""

PRIORITIES = {"high": 0, "normal": 3, "low": 6}
"""A job's priority as stored."""

_SUBJECTS = ", ".join(f"payload ->> '{name}'" for name in subject_fields())
SUBJECT = f"coalesce({_SUBJECTS})"
"""What a job of any kind asks, in SQL."""

CHANNEL = "marco_jobs"
"""NOTIFY channel: the id of each job that reached a final state."""

JOB_FINISHED, BATCH_FINISHED = "job.finished", "batch.finished"
"""Events that webhooks are notified of."""


def outbox(event: str, ended: str) -> str:
    """Part of WITH: holds a delivery for each webhook of what `ended`, a query of id and tenant.

    One that is being removed is waited for: its deliveries would break the foreign key, and so
    keep the job from ending.
    """
    return f"""held AS (
        INSERT INTO webhook_deliveries (webhook_id, event, {event.partition(".")[0]}_id)
        SELECT w.id, '{event}', ended.id FROM ({ended}) AS ended JOIN webhooks AS w
            ON w.tenant = ended.tenant AND '{event}' = ANY (w.events) FOR KEY SHARE OF w
    )"""  # noqa: S608  # constants


def not_found(job_id: UUID, tenant: str | None = None) -> JobNotFound:
    """The error for a job that does not exist, or not for this tenant."""
    return JobNotFound(f"no job {job_id}" + (f" of tenant {tenant!r}" if tenant else ""))
