"""What an operator does with jobs that are there: hold them back, let them go on, revive them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from uuid import UUID

from marco_search.errors import InvalidJob, JobNotFound
from marco_search.jobs.requests import MAX_TENANT_CHARS
from marco_search.jobs.validation import flaw, shown
from marco_search.store.db import Database
from marco_search.store.queue import dead_letters, scheduling, tenants
from marco_search.store.queue import jobs as store
from marco_search.store.queue.dead_letters import DeadLetter
from marco_search.store.queue.states import DEAD_LETTER, JobState
from producer.handles import JobId, job_uuid, job_uuids


class Everyone(Enum):
    """Type of `EVERYONE`, which no text is: an empty name must not mean all tenants."""

    EVERYONE = "EVERYONE"


EVERYONE = Everyone.EVERYONE
_LARGEST = 2**31 - 1
_AT_ONCE = 10_000  # jobs that one transaction ends, and one seal covers


class Operations:
    """Part of `Producer`. All methods raise DatabaseUnavailable.

    Where `tenant` may be given, None is the producer's own (or that of the settings); EVERYONE,
    where it may be given, is all tenants. Raises InvalidJob for another than a producer's own.
    """

    database: Database
    _tenant: str | None  # whose jobs are seen; None: everybody's
    _default_tenant: str
    _aging_s: float

    def _publish(self, job_ids: Sequence[UUID]) -> None:
        raise NotImplementedError

    def states(self, jobs: Iterable[JobId]) -> dict[UUID, JobState]:
        """The state of each job. Raises JobNotFound."""
        with self.database.transaction() as conn:
            return store.states(conn, job_uuids(jobs), tenant=self._tenant)

    def cancel_many(self, jobs: Iterable[JobId]) -> dict[UUID, JobState]:
        """Cancel jobs as `Producer.cancel` does; the state of each after that.

        Raises JobNotFound before any is cancelled.
        """
        ids = job_uuids(jobs)
        self.states(ids)
        cancelled: dict[UUID, JobState] = {}
        for start in range(0, len(ids), _AT_ONCE):
            with self.database.transaction() as conn:
                part = ids[start : start + _AT_ONCE]
                cancelled |= store.cancel(conn, part, tenant=self._tenant)
        return cancelled

    def cancel_all(
        self,
        *,
        tenant: str | Everyone | None = None,
        batch_id: UUID | None = None,
        state: JobState | None = None,
    ) -> dict[UUID, JobState]:
        """Cancel all jobs of a tenant that have not ended; the state of each after that.

        Only those of a batch, or in `state` ("queued" or "running"), if given.
        """
        whose = self._whose(tenant) or None
        _check_state(state, (JobState.QUEUED, JobState.RUNNING))
        if batch_id is not None and not isinstance(batch_id, UUID):
            raise InvalidJob("batch_id", f"must be a uuid.UUID, not {shown(batch_id)}")
        cancelled: dict[UUID, JobState] = {}
        while True:
            with self.database.transaction() as conn:
                found = store.unfinished(
                    conn, tenant=whose, batch_id=batch_id, state=state, limit=_AT_ONCE
                )
                if not found:
                    return cancelled
                cancelled |= store.cancel(conn, found, tenant=whose)

    def pause(self, job: JobId) -> JobState:
        """Pause a job; its state now. Raises JobNotFound.

        A queued one is not begun. A running one stays "running" until its worker has finished
        the round and given it back. Its deadline goes on.
        """
        with self.database.transaction() as conn:
            return store.set_paused(conn, job_uuid(job), paused=True, tenant=self._tenant)

    def resume(self, job: JobId) -> JobState:
        """Let a paused job go on; its state now. Raises JobNotFound."""
        job_id = job_uuid(job)
        with self.database.transaction() as conn:
            state = store.set_paused(conn, job_id, paused=False, tenant=self._tenant)
        if state is JobState.QUEUED:
            self._publish([job_id])
        return state

    def pause_tenant(self, tenant: str | Everyone | None = None) -> None:
        """Pause all jobs of a tenant, also those submitted later."""
        with self.database.transaction() as conn:
            tenants.set_paused(conn, self._whose(tenant), paused=True)

    def resume_tenant(self, tenant: str | Everyone | None = None) -> None:
        """Let a tenant's jobs go on. Jobs that were paused one by one stay paused."""
        name = self._whose(tenant)
        with self.database.transaction() as conn:
            tenants.set_paused(conn, name, paused=False)
            job_ids = scheduling.resumed(conn, name)
        self._publish(job_ids)

    def set_quota(self, max_queued: int | None, tenant: str | None = None) -> None:
        """Give a tenant a limit of queued jobs of its own; None: that of the settings."""
        if max_queued is not None:
            _check_number("max_queued", max_queued)
        with self.database.transaction() as conn:
            tenants.set_quota(conn, self._own(tenant), max_queued)

    def dead_letters(
        self, *, state: str | None = None, error: str | None = None, limit: int = 100
    ) -> list[DeadLetter]:
        """Jobs that were given up (dead or failed), the latest first.

        Only those in `state`, and with an error of this type ("WorkerLost"), if given.
        """
        _check_number("limit", limit)
        _check_state(state, DEAD_LETTER)
        if error is not None and not (isinstance(error, str) and "\x00" not in error):
            raise InvalidJob("error", f"must be the name of a type, not {shown(error)}")
        with self.database.transaction() as conn:
            return dead_letters.letters(
                conn, tenant=self._tenant, state=state, error=error, limit=limit
            )

    def dead_letter(self, job: JobId) -> DeadLetter:
        """One of them. Raises JobNotFound if the job was not given up."""
        with self.database.transaction() as conn:
            found = dead_letters.letters(conn, tenant=self._tenant, job_id=job_uuid(job))
        if not found:
            raise JobNotFound(f"job {job} is neither dead nor failed (see `marco dead list`)")
        return found[0]

    def requeue(self, jobs: JobId | Iterable[JobId]) -> list[UUID]:
        """Queue those of the jobs that were given up; which they were.

        They go on from their last kept round, their counters start again, and a deadline
        that has passed is dropped.
        """
        with self.database.transaction() as conn:
            requeued = dead_letters.requeue(
                conn, job_uuids(jobs), tenant=self._tenant, aging_s=self._aging_s
            )
        self._publish(requeued)
        return requeued

    def restart(self, jobs: JobId | Iterable[JobId]) -> dict[UUID, UUID]:
        """Begin jobs anew, on the model that workers have now; the new id of each.

        For jobs that were given up, and for queued ones that wait for a model nobody has any
        more. Others are left out. The old job is cancelled and keeps its answers and its trail;
        the new one has its request, tenant, priority, batch and expected answer.
        """
        with self.database.transaction() as conn:
            renewed = dead_letters.restart(
                conn, job_uuids(jobs), tenant=self._tenant, aging_s=self._aging_s
            )
        self._publish(list(renewed.values()))
        return renewed

    def waiting_for_model(self, *, limit: int = 1000) -> list[UUID]:
        """Queued jobs that were begun on a model that no worker had lately, the oldest first."""
        _check_number("limit", limit)
        with self.database.transaction() as conn:
            return dead_letters.parked(conn, tenant=self._tenant, limit=limit)

    def _whose(self, tenant: str | Everyone | None) -> str:
        """As `_own`; "" for everyone."""
        if not isinstance(tenant, Everyone):
            return self._own(tenant)
        if self._tenant is not None:
            raise InvalidJob("tenant", f"this producer is for {self._tenant!r}, not for everyone")
        return tenants.EVERYONE

    def _own(self, tenant: str | None) -> str:
        if tenant is None:
            return self._tenant or self._default_tenant
        if self._tenant not in (None, tenant):
            raise InvalidJob("tenant", f"this producer is for {self._tenant!r}, not {tenant!r}")
        check_tenant(tenant)
        return tenant


def check_tenant(tenant: object) -> None:
    """Raises InvalidJob for what is neither None nor a tenant's name."""
    if tenant is None:
        return
    if not isinstance(tenant, str):
        raise InvalidJob("tenant", f"must be text, not {shown(tenant)}")
    problem = flaw(tenant, MAX_TENANT_CHARS)
    if problem is not None:
        raise InvalidJob("tenant", problem)


def _check_number(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _LARGEST:
        raise InvalidJob(name, f"must be a whole number from 0 to {_LARGEST:,}, not {shown(value)}")


def _check_state(state: object, known: Sequence[JobState]) -> None:
    if state is not None and state not in known:
        raise InvalidJob("state", f"must be one of {', '.join(known)}, not {shown(state)}")
