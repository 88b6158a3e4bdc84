"""What callers hand to a producer: names of jobs, tenants, limits."""

from collections.abc import Iterable
from enum import Enum
from typing import overload
from uuid import UUID

from marco_search.errors import BatchNotFound, InvalidJob, JobNotFound
from marco_search.jobs import MAX_TENANT_CHARS
from marco_search.jobs.validation import flaw, shown
from marco_search.store.queue.jobs import JobHandle

_LARGEST = 2**31 - 1


class Everyone(Enum):
    """Type of `EVERYONE`. Not a string, so that an empty name can't mean all tenants."""

    EVERYONE = "EVERYONE"


EVERYONE = Everyone.EVERYONE


JobId = JobHandle | UUID | str
"""Identifies a job: what `submit` returned, or its id."""
BatchId = UUID | str
"""Identifies a batch: its id."""


def job_uuid(job: JobId) -> UUID:
    """The job's id. Raises JobNotFound for text that is not an id, TypeError for other types."""
    if isinstance(job, UUID):
        return job
    if isinstance(job, JobHandle):
        return job.id
    if not isinstance(job, str):
        raise TypeError(f"a job is given as what submit returned or as its id, not as {job!r}")
    try:
        return UUID(job)
    except ValueError:
        raise JobNotFound(f"invalid job id {shown(job)}; an id looks like {UUID(int=0)}") from None


def job_uuids(jobs: JobId | Iterable[JobId]) -> list[UUID]:
    """The ids of one job or of several, in the order given."""
    if isinstance(jobs, JobHandle | UUID | str):
        return [job_uuid(jobs)]
    if not isinstance(jobs, Iterable):
        raise TypeError(f"jobs are given as one id or several, not as {jobs!r}")
    return [job_uuid(job) for job in jobs]


@overload
def batch_uuid(batch: BatchId) -> UUID: ...
@overload
def batch_uuid(batch: BatchId | None) -> UUID | None: ...
def batch_uuid(batch: BatchId | None) -> UUID | None:
    """The batch's id. Raises BatchNotFound for text that is not an id, InvalidJob for others."""
    if batch is None or isinstance(batch, UUID):
        return batch
    require(isinstance(batch, str), "batch_id", "a batch's id", batch)
    try:
        return UUID(batch)
    except ValueError:
        wanted = f"an id looks like {UUID(int=0)}"
        raise BatchNotFound(f"invalid batch id {shown(batch)}; {wanted}") from None


def require(ok: bool, field: str, wanted: str, value: object) -> None:
    """Raises InvalidJob, saying that the field must be `wanted`, unless `ok`."""
    if not ok:
        raise InvalidJob(field, f"must be {wanted}, not {shown(value)}")


def check_tenant(tenant: object) -> None:
    """Raises InvalidJob for a value that is neither None nor a tenant's name."""
    if tenant is None:
        return
    require(isinstance(tenant, str), "tenant", "text", tenant)
    problem = flaw(str(tenant), MAX_TENANT_CHARS)
    if problem is not None:
        raise InvalidJob("tenant", problem)


def check_number(name: str, value: object) -> None:
    """Raises InvalidJob for a value that is not a count."""
    count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST
    require(count, name, f"a whole number from 0 to {_LARGEST:,}", value)


def check_seconds(name: str, value: object) -> None:
    """Raises TypeError for a value that is not a number of seconds."""
    if not (isinstance(value, int | float) and value >= 0):
        raise TypeError(f"{name} must be a number of seconds, 0 or more, not {shown(value)}")
