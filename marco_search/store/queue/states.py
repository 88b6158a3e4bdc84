"""The life of a job.

    queued ──claim──> running ──> succeeded | failed | cancelled | expired | dead
       ^                 │
       └─release, retry──┘
         reclaim

A shutdown of the worker or a pause releases the job, which is queued again. A retryable error
returns it to the queue with a later `run_after`. The scheduler reclaims jobs whose lease has
expired. A job is `expired` if its deadline came first, with the best answers it had by then, and
`dead` if it used up its attempts or several workers were lost with it. Only `failed` and `dead`
jobs can leave their state: an operator may requeue them.
"""

from uuid import UUID

from marco_search.errors import JobNotFound
from marco_search.jobs import JobState as JobState
from marco_search.kinds import subject_fields

DEAD_LETTER = (JobState.FAILED, JobState.DEAD)
"""States of dead letters, which only an operator can requeue."""

FINAL = (JobState.SUCCEEDED, JobState.CANCELLED, JobState.EXPIRED, *DEAD_LETTER)
"""Final states: a job leaves them only by a requeue."""

PRIORITIES = {"high": 0, "normal": 3, "low": 6}
"""A job's priority as stored."""

_SUBJECTS = ", ".join(f"payload ->> '{name}'" for name in subject_fields())
SUBJECT = f"coalesce({_SUBJECTS})"
"""The subject of a job of any kind, in SQL."""

CHANNEL = "marco_jobs"
"""NOTIFY channel: the id of each job that reached a final state."""

JOB_FINISHED, BATCH_FINISHED = "job.finished", "batch.finished"
"""Events that webhooks are notified of."""


def outbox(event: str, ended: str) -> str:
    """Part of WITH: stores a delivery for each webhook of what `ended`, a query of id and tenant.

    Waits for a webhook that is being removed: its deliveries would violate the foreign key, and
    so prevent the job from ending.
    """
    return f"""held AS (
        INSERT INTO webhook_deliveries (webhook_id, event, {event.partition(".")[0]}_id)
        SELECT w.id, '{event}', ended.id FROM ({ended}) AS ended JOIN webhooks AS w
            ON w.tenant = ended.tenant AND '{event}' = ANY (w.events) FOR KEY SHARE OF w
    )"""  # noqa: S608  # constants


def not_found(job_id: UUID, tenant: str | None = None) -> JobNotFound:
    """The error for a job that does not exist, or not for this tenant."""
    return JobNotFound(f"no job {job_id}" + (f" of tenant {tenant!r}" if tenant else ""))
