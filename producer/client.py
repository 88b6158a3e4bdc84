"""The producer: submits jobs, and tells what became of them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self, overload
from uuid import UUID

from pydantic import SecretStr

from marco_search import settings as settings_module
from marco_search.broker import Publisher
from marco_search.errors import BrokerUnavailable, InvalidJob
from marco_search.jobs import Job, JobResult
from marco_search.jobs.validation import shown
from marco_search.kinds import parse_job
from marco_search.locations import database_url as database_location
from marco_search.locations import redis_url as redis_location
from marco_search.settings import Settings
from marco_search.store.db import Database
from marco_search.store.queue import jobs as store
from marco_search.store.queue import scheduling
from marco_search.store.queue.states import JobState
from marco_search.store.queue.tenants import Gate
from marco_search.store.reads import queries
from marco_search.store.reads.queries import JobStatus
from producer.handles import JobHandle, JobId, job_uuid, job_uuids
from producer.listener import Listener
from producer.operations import Operations, check_tenant
from producer.pending import Pending

log = logging.getLogger(__name__)


class Producer(Operations):
    """Submits jobs and waits for their results. May be shared by threads.

    Where Postgres and Redis are comes from the arguments, else from `settings`, else from
    the environment. With `tenant` the producer submits for that tenant and sees only its
    jobs; without, it submits for the tenant of the settings and sees every job.

    All methods raise DatabaseUnavailable if Postgres can't be reached. What can't be a job, a
    tenant or a number where one is asked for raises InvalidJob, what can't name a job TypeError.
    """

    def __init__(
        self,
        database_url: str | None = None,
        redis_url: str | None = None,
        tenant: str | None = None,
        settings: Settings | None = None,
    ) -> None:
        check_tenant(tenant)
        given = {"database_url": database_url, "redis_url": redis_url}
        urls = {name: SecretStr(url) for name, url in given.items() if url is not None}
        self._settings = (settings or settings_module.load()).model_copy(update=urls)
        self._tenant = tenant
        self._default_tenant = self._settings.tenant
        self._aging_s = self._settings.aging_s
        self._gate = Gate(self._settings.max_queued, self._settings.tenant_max_queued)
        self.database = Database(database_location(self._settings), application="marco producer")
        self.listener = Listener(self.database)
        self._publisher: Publisher | None = None

    # -- submit ---------------------------------------------------------------------------

    def submit(self, job: Job | Mapping[str, Any]) -> JobHandle:
        """Store one job and put it into the queue.

        Redis being down is no error: the job is stored and runs when Redis is back. With an
        idempotency key that is known, the job it names is returned.
        Raises InvalidJob for bad input, IdempotencyConflict if the key has another payload,
        QueueFull or QuotaExceeded, with a hint when to try again, if too much is queued.
        Nothing is stored then.
        """
        return self._submit([self._checked(job)], None)[0]

    def submit_many(
        self, jobs: Iterable[Job | Mapping[str, Any]], *, batch_id: UUID | None = None
    ) -> list[JobHandle]:
        """Store all of the jobs or none, and put them into the queue; handles in order.

        Raises as `submit` does; a field of a wrong job is named `jobs[N].field`.
        """
        if not isinstance(jobs, Iterable) or isinstance(jobs, Mapping | Job | str | bytes):
            raise InvalidJob("jobs", f"must be several jobs, not {shown(jobs)}; submit takes one")
        if batch_id is not None and not isinstance(batch_id, UUID):
            raise InvalidJob("batch_id", f"must be a uuid.UUID, not {shown(batch_id)}")
        checked = []
        for i, job in enumerate(jobs):
            try:
                checked.append(self._checked(job))
            except InvalidJob as error:
                raise InvalidJob(f"jobs[{i}].{error.field}", error.reason) from None
        return self._submit(checked, batch_id)

    def _checked(self, job: Job | Mapping[str, Any]) -> Job:
        checked = job if isinstance(job, Job) else parse_job(job)
        if self._tenant is not None and checked.tenant not in (None, self._tenant):
            raise InvalidJob(
                "tenant", f"this producer submits for {self._tenant!r}, not {checked.tenant!r}"
            )
        return checked

    def _submit(self, checked: Sequence[Job], batch_id: UUID | None) -> list[JobHandle]:
        tenant = self._tenant or self._default_tenant
        if self._publisher is None:
            with contextlib.suppress(BrokerUnavailable):  # nothing runs: the rows wait
                # Before anything is stored: an address that can't be used is no outage.
                self._publisher = Publisher(redis_location(self._settings), self._settings.queue)
        with self.database.transaction() as conn:
            stored = store.insert(
                conn,
                checked,
                tenant=tenant,
                batch_id=batch_id,
                gate=self._gate,
                aging_s=self._aging_s,
            )
        # The sweep looks after jobs that were there before.
        self._publish([s.id for s in stored if s.created])
        return [JobHandle(id=s.id, state=s.state, created=s.created) for s in stored]

    def _publish(self, job_ids: Sequence[UUID]) -> None:
        """Tell the broker of jobs that are marked as published already."""
        if not job_ids:
            return
        try:
            if self._publisher is None:
                self._publisher = Publisher(redis_location(self._settings), self._settings.queue)
            self._publisher.publish(job_ids)
        except BrokerUnavailable as error:
            log.warning("%d jobs are stored and wait for Redis: %s", len(job_ids), error)
            with self.database.transaction() as conn:
                scheduling.unpublished(conn, job_ids)

    # -- follow ---------------------------------------------------------------------------

    @overload
    def wait(  # type: ignore[overload-overlap]  # text is one id, not an iterable of them
        self, jobs: JobId, timeout_s: float | None = None
    ) -> JobResult: ...
    @overload
    def wait(self, jobs: Iterable[JobId], timeout_s: float | None = None) -> list[JobResult]: ...
    def wait(
        self, jobs: JobId | Iterable[JobId], timeout_s: float | None = None
    ) -> JobResult | list[JobResult]:
        """The result of a job, or of several in their order, once all have ended.

        A job that failed gives a result too: look at its `state`.
        Raises JobNotFound, and WaitTimeout after `timeout_s`; the jobs go on then.
        """
        ids = job_uuids(jobs)
        found = {result.job_id: result for result in self.results(ids, timeout_s)}
        if isinstance(jobs, JobId):
            return found[str(ids[0])]
        return [found[str(job_id)] for job_id in ids]

    def results(
        self, jobs: JobId | Iterable[JobId], timeout_s: float | None = None
    ) -> Iterator[JobResult]:
        """The results of the jobs as they end. Raises as `wait` does."""
        ids = job_uuids(jobs)
        self.states(ids)
        pending = Pending(ids, timeout_s)
        told: SimpleQueue[UUID | None] = SimpleQueue()
        with self.listener.subscribed(told.put):
            while pending.ids:
                for result in self.ended(pending.look_at):
                    pending.done(UUID(result.job_id))
                    yield result
                if pending.ids:
                    pending.heard(_drain(told, pending.patience()))

    def ended(self, jobs: Iterable[JobId]) -> list[JobResult]:
        """The results of those of the jobs that have ended, in any order; others are left out."""
        ids = job_uuids(jobs)
        if not ids:
            return []
        with self.database.transaction() as conn:
            return queries.results(conn, ids, tenant=self._tenant)

    def status(self, job: JobId) -> JobStatus:
        """Where a job stands. Raises JobNotFound."""
        with self.database.transaction() as conn:
            return queries.statuses(conn, [job_uuid(job)], tenant=self._tenant)[0]

    def cancel(self, job: JobId) -> JobState:
        """Cancel a job; its state after that. Raises JobNotFound.

        A queued job is cancelled at once; one that a worker has given back stays "queued" until
        the next sweep, about a second, ranks its answers. A running one stays "running" until
        its worker hears of it, within two seconds, and keeps the answers of its rounds; if its
        worker is gone, until the lease runs out. One that has ended stays.
        """
        with self.database.transaction() as conn:
            return store.cancel(conn, [job_uuid(job)], tenant=self._tenant)[job_uuid(job)]

    # -- close ----------------------------------------------------------------------------

    def close(self) -> None:
        """Drop all connections. Jobs go on."""
        self.listener.close()
        if self._publisher is not None:
            self._publisher.close()
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _drain(told: SimpleQueue[UUID | None], patience_s: float) -> list[UUID | None]:
    """All that was told; if nothing was, the first within `patience_s`."""
    heard = []
    try:
        heard.append(told.get(timeout=patience_s))
        while True:
            heard.append(told.get_nowait())
    except Empty:
        return heard
