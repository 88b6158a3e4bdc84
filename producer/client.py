"""The producer: submits jobs, waits for their results, and manages existing jobs."""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from threading import Event
from typing import Any, Self, TypeVar, overload
from uuid import UUID

from pydantic import SecretStr

from marco_search import settings as settings_module
from marco_search.broker import Publisher
from marco_search.errors import (
    BrokerUnavailable,
    DatabaseUnavailable,
    IdempotencyConflict,
    InvalidJob,
    JobNotFound,
)
from marco_search.jobs import Job, JobResult
from marco_search.jobs.validation import shown, unstorable
from marco_search.kinds import checked
from marco_search.locations import database_url as database_location
from marco_search.locations import redis_url as redis_location
from marco_search.search.config import SearchConfig
from marco_search.search.tree import Tree
from marco_search.settings import Settings
from marco_search.store.db import Database
from marco_search.store.queue import batches, dead_letters, scheduling, tenants
from marco_search.store.queue import jobs as store
from marco_search.store.queue.batches import Batch, BatchLine
from marco_search.store.queue.dead_letters import DeadLetter
from marco_search.store.queue.jobs import JobHandle
from marco_search.store.queue.states import DEAD_LETTER, JobState
from marco_search.store.reads import queries
from marco_search.store.reads.queries import JobStatus
from producer import uploads
from producer.handles import (
    BatchId,
    Everyone,
    JobId,
    batch_uuid,
    check_number,
    check_seconds,
    check_tenant,
    job_uuid,
    job_uuids,
    require,
)
from producer.waits import POLL_S, Listener, Pending, Watch, reasons

log = logging.getLogger(__name__)

T = TypeVar("T")

_LINES_AT_ONCE = 500  # results held in memory
_AT_ONCE = 10_000  # jobs that one transaction ends, and one seal covers


class Producer:
    """Submits jobs and waits for their results. Safe to share between threads and to use after a
    fork.

    The addresses of Postgres and Redis come from the arguments, else from `settings`, else from
    the environment. With `tenant` the producer submits for that tenant and sees only its
    jobs; without, it submits for the tenant of the settings and sees all jobs. A wait reads all
    its jobs every `poll_s` seconds, in case a notification was lost.

    All methods raise DatabaseUnavailable if Postgres can't be reached, InvalidJob for an invalid
    job, tenant or number, and TypeError for a value that can't identify a job. Where a method takes
    `tenant`, None means the producer's own (or that of the settings), and EVERYONE, where
    accepted, all tenants. A tenant other than the producer's own raises InvalidJob.
    """

    def __init__(
        self,
        database_url: str | None = None,
        redis_url: str | None = None,
        tenant: str | None = None,
        settings: Settings | None = None,
        *,
        poll_s: float = POLL_S,
    ) -> None:
        check_tenant(tenant)
        check_seconds("poll_s", poll_s)
        urls = dict[str, SecretStr]()
        for name, url in (("database_url", database_url), ("redis_url", redis_url)):
            if url is not None:
                require(isinstance(url, str), name, "text", url)
                urls[name] = SecretStr(url)
        self._settings = (settings or settings_module.load()).model_copy(update=urls)
        self._tenant = tenant  # whose jobs are visible; None: everyone's
        self._gate = tenants.Gate(self._settings.max_queued, self._settings.tenant_max_queued)
        self._database = Database(database_location(self._settings), application="marco producer")
        self._call = self._database.call
        self._listener = Listener(self._database)
        self._poll_s = poll_s
        self._publisher: Publisher | None = None

    def for_tenant(self, tenant: str) -> Self:
        """This producer bound to a tenant. They share connections: close only the original."""
        with contextlib.suppress(BrokerUnavailable):
            self._broker()
        bound = copy(self)
        bound._tenant = self._own(tenant)
        return bound

    def submit(self, job: Job | Mapping[str, Any]) -> JobHandle:
        """Store one job and put it into the queue.

        If Redis is down, the job is stored and runs when Redis is back. If the idempotency key was
        used before, the existing job is returned.
        Raises InvalidJob for bad input, IdempotencyConflict if the key belongs to another payload,
        QueueFull or QuotaExceeded, with a hint when to try again, if too much is queued; in each
        case nothing is stored.
        """
        return self._submit([self._allowed(checked(job))], None)[0]

    def submit_many(
        self, jobs: Iterable[Job | Mapping[str, Any]], *, batch_id: BatchId | None = None
    ) -> list[JobHandle]:
        """Store all of the jobs or none, and put them into the queue; handles in order.

        They form a new batch, whose id is in each handle, or join the batch `batch_id`.
        Raises as `submit` does; a field of an invalid job is named `jobs[N].field`.
        """
        if not isinstance(jobs, Iterable) or isinstance(jobs, Mapping | Job | str | bytes):
            raise InvalidJob("jobs", f"must be several jobs, not {shown(jobs)}; submit accepts one")
        batch = batch_uuid(batch_id)
        several = []
        for i, job in enumerate(jobs):
            try:
                several.append(self._allowed(checked(job)))
            except InvalidJob as error:
                raise InvalidJob(f"jobs[{i}].{error.field}", error.reason) from None
        return self._submit(several, batch or store.new_job_id()) if several else []

    def submit_batch(
        self,
        lines: Iterable[bytes],
        *,
        source: str | None = None,
        batch_id: BatchId | None = None,
        options: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        waits: bool = False,
        begun: Callable[[Batch], None] = lambda _: None,
    ) -> Batch:
        """Store the jobs in these JSON lines, in our format or OpenAI's, and queue them; the batch.

        They are stored in parts, so memory does not grow with their number. An invalid line is
        refused (see `refused_lines`) and the others are stored. `options` apply where a line sets
        none. After an interruption, call it again with the same lines and the same `source` or
        `batch_id`: it continues where it stopped. `begun` is called with the batch at the start.
        Raises InvalidJob if the lines differ, and QueueFull or QuotaExceeded unless `waits` is
        set; parts already stored are kept.
        """
        whose = self._own(None)
        uploads.check(lines, source, options, metadata)
        batch = self._call(
            batches.begin, tenant=whose, source=source, metadata=metadata,
            batch_id=batch_uuid(batch_id),
        )  # fmt: skip
        begun(batch)
        uploads.upload(batch, lines, options or {}, partial(self._store_part, batch), waits=waits)
        return self.batch(batch.id)

    def _store_part(self, batch: Batch, part: uploads.Part) -> None:
        with self._database.transaction() as conn:
            batches.take(
                conn, batch.id, before=part.before, lines=part.lines, digest=part.digest,
                complete=part.complete,
            )  # fmt: skip
            stored, refused = list[tuple[int, str | None, JobHandle]](), part.refused
            jobs = sorted(part.jobs, key=lambda one: store.in_order(one[1], batch.tenant))
            step = 1 if part.one_by_one else len(jobs) or 1
            for start in range(0, len(jobs), step):
                some = jobs[start : start + step]
                try:
                    with conn.transaction():
                        handles = store.insert(
                            conn, [self._allowed(job) for _, job in some], tenant=batch.tenant,
                            batch_id=batch.id, lines=[line for line, _ in some], gate=self._gate,
                            aging_s=self._settings.aging_s,
                        )  # fmt: skip
                except (IdempotencyConflict, InvalidJob) as error:
                    if not part.one_by_one:
                        raise IdempotencyConflict(str(error)) from None
                    wrong = InvalidJob(f"line {some[0][0]}", str(error))
                    refused.append(uploads.refusal(some[0][0], wrong, some[0][1].custom_id))
                else:
                    pairs = zip(some, handles, strict=True)
                    stored += [(line, job.custom_id, handle) for (line, job), handle in pairs]
            batches.note_known(conn, batch.id, stored)
            batches.refuse(conn, batch.id, refused)
        self._publish([handle.id for _, _, handle in stored if handle.created])

    def batch(self, batch_id: BatchId) -> Batch:
        """A batch, with the number of its jobs in each state. Raises JobNotFound."""
        return self._call(batches.find, batch_uuid(batch_id), tenant=self._tenant)

    def batches(self, *, limit: int = 20, after: BatchId | None = None) -> list[Batch]:
        """The latest batches, newest first; with `after`, those that follow that one."""
        check_number("limit", limit)
        return self._call(batches.latest, tenant=self._tenant, limit=limit, after=batch_uuid(after))

    def batch_results(self, batch_id: BatchId) -> Iterator[JobResult]:
        """The results of a batch's jobs that have ended, in the order of its lines.

        If a line has several jobs, the latest counts. May be called at any time; memory does not
        grow with the batch. Raises JobNotFound.
        """
        batch = self.batch(batch_id)
        for after in range(0, batch.lines, _LINES_AT_ONCE):
            with self._database.transaction() as conn:
                lines = batches.lines(conn, batch.id, after=after, last=after + _LINES_AT_ONCE)
                ids = [line.job_id for line in lines if line.job_id is not None]
                ended = {r.job_id: r for r in queries.results(conn, ids, tenant=self._tenant)}
            for line in lines:
                if (found := ended.get(str(line.job_id))) is not None:
                    place = {
                        "batch_id": str(batch.id),
                        "batch_line": line.line,
                        "custom_id": line.custom_id,
                    }
                    yield found.model_copy(update=place)

    def refused_lines(
        self, batch_id: BatchId, *, after: int = 0, limit: int | None = None
    ) -> list[BatchLine]:
        """The lines of a batch that were refused, with the reasons. Raises JobNotFound.

        For paging: only lines `after` this one, `limit` at most.
        """
        check_number("after", after)
        if limit is not None:
            check_number("limit", limit)
        return self._call(batches.refused, self.batch(batch_id).id, after=after, limit=limit)

    def restart_batch(self, batch_id: BatchId) -> int:
        """Restart a batch's cancelled, expired, failed and dead jobs; returns how many.

        Each line gets a new job; the old ones keep their answers and their trail.
        Raises JobNotFound.
        """
        batch = self.batch(batch_id)
        count, aging_s = 0, self._settings.aging_s
        # Line by line: those that fail again meanwhile are not restarted again.
        for after in range(0, batch.lines or 1, _AT_ONCE):
            made = self._call(
                batches.restart, batch.id, after=after, last=after + _AT_ONCE,
                tenant=self._tenant, aging_s=aging_s,
            )  # fmt: skip
            self._publish(made)
            count += len(made)
        return count

    def _allowed(self, job: Job) -> Job:
        if self._tenant is not None and job.tenant not in (None, self._tenant):
            raise InvalidJob(
                "tenant", f"this producer submits for {self._tenant!r}, not {job.tenant!r}"
            )
        return job

    def _submit(self, jobs: Sequence[Job], batch_id: UUID | None) -> list[JobHandle]:
        with contextlib.suppress(BrokerUnavailable):
            self._broker()  # before anything is stored: a bad address is an error, not an outage
        with self._database.transaction() as conn:
            tenant, first, count = self._own(None), 1, len(jobs)
            if batch_id is not None:
                batches.begin(conn, tenant=tenant, batch_id=batch_id)
                first += batches.take(conn, batch_id, before=None, lines=count, complete=True)
            lines = range(first, first + count)
            stored = store.insert(
                conn, jobs, tenant=tenant, batch_id=batch_id, lines=lines, gate=self._gate,
                aging_s=self._settings.aging_s,
            )  # fmt: skip
            if batch_id is not None:
                known = zip(lines, (job.custom_id for job in jobs), stored, strict=True)
                batches.note_known(conn, batch_id, list(known))
                stored = [replace(handle, batch_id=batch_id) for handle in stored]
        # A scheduler publishes jobs that existed before, if needed.
        self._publish([job.id for job in stored if job.created])
        return stored

    def _broker(self) -> Publisher:
        if self._publisher is None:
            self._publisher = Publisher(redis_location(self._settings), self._settings.queue)
        return self._publisher

    def _publish(self, job_ids: Sequence[UUID]) -> None:
        """Send messages for jobs that are already marked as published."""
        if not job_ids:
            return
        try:
            self._broker().publish(job_ids)
        except BrokerUnavailable as error:
            log.warning("%d jobs are stored and wait for Redis: %s", len(job_ids), error)
            # If Postgres is down as well, a scheduler will treat their messages as lost.
            with contextlib.suppress(DatabaseUnavailable):
                self._call(scheduling.unpublished, job_ids)

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

        A failed job has a result, too: check its `state`. If no worker responds, or jobs are
        paused, a warning is logged once after a few seconds.
        Raises JobNotFound, and WaitTimeout after `timeout_s`; the jobs continue.
        """
        ids = job_uuids(jobs)
        found = {result.job_id: result for result in self.results(ids, timeout_s)}
        in_order = [found[str(job_id)] for job_id in ids]
        return in_order[0] if isinstance(jobs, JobId) else in_order

    def results(
        self, jobs: JobId | Iterable[JobId], timeout_s: float | None = None
    ) -> Iterator[JobResult]:
        """The results of the jobs as they end. Raises as `wait` does."""
        yield from self._wait(*self._for_results(jobs, timeout_s))

    def follow(
        self,
        jobs: JobId | Iterable[JobId],
        timeout_s: float | None = None,
        *,
        every_s: float = 0.3,
    ) -> Iterator[list[JobStatus]]:
        """Status of the jobs: now, whenever some have ended, and about every `every_s` seconds.

        Stops when all have ended. Raises as `wait` does.
        """
        yield from self._wait(*self._for_following(jobs, timeout_s, every_s))

    def _wait(self, pending: Pending, read: Callable[[], list[T]]) -> Iterator[T]:
        woken = Event()
        with self._listener.subscribed(woken.set) as take_notices:
            while pending.ids:
                if pending.to_read:  # otherwise only jobs of other waits have ended
                    yield from read()
                if pending.ids:
                    woken.wait(pending.patience())
                    woken.clear()
                    pending.notified(take_notices())

    def _for_results(
        self, jobs: JobId | Iterable[JobId], timeout_s: float | None
    ) -> tuple[Pending, Callable[[], list[JobResult]]]:
        """What a wait waits for, and what it reads each time."""
        ids = job_uuids(jobs)
        self.states(ids)
        pending, watch = Pending(ids, timeout_s, self._poll_s), Watch()

        def read() -> list[JobResult]:
            ended = self.ended(pending.to_read)
            for result in ended:
                pending.done(UUID(result.job_id))
            watch.look(lambda: self.standstill(pending.ids))
            return ended

        return pending, read

    def _for_following(
        self, jobs: JobId | Iterable[JobId], timeout_s: float | None, every_s: float
    ) -> tuple[Pending, Callable[[], list[list[JobStatus]]]]:
        ids = job_uuids(jobs)
        check_seconds("every_s", every_s)
        pending, found = Pending(ids, timeout_s, every_s), dict[UUID, JobStatus]()
        watch = Watch()

        def read() -> list[list[JobStatus]]:
            with pending.seldom():
                lines = self._call(queries.statuses, pending.to_read, tenant=self._tenant)
            for line in lines:
                found[line.job_id] = line
                if line.final:
                    pending.done(line.job_id)
            watch.look(lambda: self.standstill(pending.ids))
            return [[found[job_id] for job_id in ids]]

        return pending, read

    def standstill(
        self, jobs: Iterable[JobId] | None = None, *, batch_id: BatchId | None = None
    ) -> dict[str, str]:
        """Why some of the given jobs, a batch's, or all unfinished jobs make no progress.

        A sentence by reason: "paused", "no_model", "no_worker". Waits log these as warnings.
        """
        ids = None if jobs is None else job_uuids(jobs)
        waiting = self._call(queries.unfinished, self._tenant, ids, batch_uuid(batch_id))
        return reasons(waiting, self._settings)

    def ended(self, jobs: Iterable[JobId]) -> list[JobResult]:
        """Results of the jobs that have ended, in any order; others are omitted."""
        ids = job_uuids(jobs)
        if not ids:
            return []
        return self._call(queries.results, ids, tenant=self._tenant)

    def status(self, job: JobId) -> JobStatus:
        """A job's status. Raises JobNotFound."""
        return self._call(queries.statuses, [job_uuid(job)], tenant=self._tenant)[0]

    def states(self, jobs: Iterable[JobId]) -> dict[UUID, JobState]:
        """The state of each job. Raises JobNotFound."""
        return self._call(store.states, job_uuids(jobs), tenant=self._tenant)

    def tree(self, job: JobId) -> Tree:
        """The search tree of a job, as stored so far. Raises JobNotFound."""
        from marco_search.store.trail import trail

        job_id = job_uuid(job)
        self.states([job_id])
        return Tree.restore(*self._call(trail.load, job_id))

    def config(self, job: JobId) -> SearchConfig:
        """How a job is searched. Raises JobNotFound, or InvalidJob if it was never started."""
        job_id = job_uuid(job)
        self.states([job_id])
        return self._call(queries.config, job_id)

    def cancel(self, job: JobId) -> JobState:
        """Cancel a job; returns its state afterwards. Raises JobNotFound.

        A queued job is cancelled at once; one that a worker has released stays "queued" for about
        a second, until a scheduler has ranked its answers. A running one stays "running" until
        its worker notices, within two seconds, and keeps the answers of its rounds; if its
        worker is lost, until the lease expires. One that has ended does not change.
        """
        return self.cancel_many([job])[job_uuid(job)]

    def cancel_many(self, jobs: Iterable[JobId]) -> dict[UUID, JobState]:
        """Cancel jobs as `cancel` does; returns the state of each afterwards.

        Raises JobNotFound before any is cancelled.
        """
        ids = job_uuids(jobs)
        self.states(ids)
        cancelled: dict[UUID, JobState] = {}
        for start in range(0, len(ids), _AT_ONCE):
            part = ids[start : start + _AT_ONCE]
            cancelled |= self._call(store.cancel, part, tenant=self._tenant)
        return cancelled

    def cancel_all(
        self,
        *,
        tenant: str | Everyone | None = None,
        batch_id: BatchId | None = None,
        state: JobState | None = None,
    ) -> dict[UUID, JobState]:
        """Cancel all unfinished jobs of a tenant; returns the state of each afterwards.

        Optionally only those of a batch, or in `state` ("queued" or "running").
        """
        whose = self._whose(tenant) or None
        require(state in (None, "queued", "running"), "state", "one of queued, running", state)
        batch = batch_uuid(batch_id)
        cancelled: dict[UUID, JobState] = {}
        if batch is not None and state is None:
            self._call(batches.mark_cancelled, batch, tenant=whose)
        while True:
            with self._database.transaction() as conn:
                found = store.unfinished(
                    conn, tenant=whose, batch_id=batch, state=state, limit=_AT_ONCE
                )
                if not found:
                    return cancelled
                cancelled |= store.cancel(conn, found, tenant=whose)

    def pause(self, job: JobId) -> JobState:
        """Pause a job; returns its state. Raises JobNotFound.

        A queued one is not started. A running one stays "running" until its worker has finished
        the round and released it. Its deadline still applies.
        """
        return self._call(store.set_paused, job_uuid(job), paused=True, tenant=self._tenant)

    def resume(self, job: JobId) -> JobState:
        """Resume a paused job; returns its state. Raises JobNotFound."""
        job_id = job_uuid(job)
        state = self._call(store.set_paused, job_id, paused=False, tenant=self._tenant)
        if state is JobState.QUEUED:
            self._publish([job_id])
        return state

    def pause_tenant(self, tenant: str | Everyone | None = None) -> None:
        """Pause all jobs of a tenant, including those submitted later."""
        self._call(tenants.set_paused, self._whose(tenant), paused=True)

    def resume_tenant(self, tenant: str | Everyone | None = None) -> None:
        """Resume a tenant's jobs. Jobs that were paused individually stay paused."""
        name = self._whose(tenant)
        with self._database.transaction() as conn:
            tenants.set_paused(conn, name, paused=False)
            job_ids = scheduling.resumed(conn, name)
        self._publish(job_ids)

    def set_quota(self, max_queued: int | None, tenant: str | None = None) -> None:
        """Set a tenant's quota of queued jobs; None: the default of the settings."""
        if max_queued is not None:
            check_number("max_queued", max_queued)
        self._call(tenants.set_quota, self._own(tenant), max_queued)

    def dead_letters(
        self,
        *,
        state: str | None = None,
        error: str | None = None,
        requeueable: bool = False,
        before: DeadLetter | None = None,
        limit: int = 100,
    ) -> list[DeadLetter]:
        """Dead and failed jobs, latest first; with `before` those further down than it.

        Optionally only those in `state`, or with an error of this type ("WorkerLost").
        `requeueable` leaves out redacted and archived ones, which can't be continued.
        """
        check_number("limit", limit)
        require(state in (None, *DEAD_LETTER), "state", "one of failed, dead", state)
        named = error is None or (isinstance(error, str) and not unstorable(error))
        require(named, "error", "the name of a type", error)
        return self._call(
            dead_letters.letters,
            tenant=self._tenant,
            state=state,
            error=error,
            requeueable=requeueable,
            before=before,
            limit=limit,
        )

    def dead_letter(self, job: JobId) -> DeadLetter:
        """A dead or failed job. Raises JobNotFound if the job is neither."""
        found = self._call(dead_letters.letters, tenant=self._tenant, job_id=job_uuid(job))
        if not found:
            raise JobNotFound(f"job {job} is neither dead nor failed (see `marco dead list`)")
        return found[0]

    def requeue(self, jobs: JobId | Iterable[JobId]) -> list[UUID]:
        """Queue dead and failed jobs again; returns which of the given jobs these were.

        They continue from their last stored round, their counters are reset, and a deadline
        that has passed is dropped.
        """
        ids, aging_s = job_uuids(jobs), self._settings.aging_s
        requeued = self._call(dead_letters.requeue, ids, tenant=self._tenant, aging_s=aging_s)
        self._publish(requeued)
        return requeued

    def restart(self, jobs: JobId | Iterable[JobId]) -> dict[UUID, UUID]:
        """Restart jobs on the model that workers have now; returns the new id of each.

        Applies to dead and failed jobs, and to queued ones that wait for a model that no worker
        has any more. Others are ignored. The old job is cancelled and keeps its answers and its
        trail; the new one has its request, tenant, priority, batch and expected answer.
        """
        ids, aging_s = job_uuids(jobs), self._settings.aging_s
        copies = self._call(dead_letters.restart, ids, tenant=self._tenant, aging_s=aging_s)
        self._publish(list(copies.values()))
        return copies

    def waiting_for_model(self, *, limit: int = 1000) -> list[UUID]:
        """Queued jobs started on a model that no worker has had lately, oldest first."""
        check_number("limit", limit)
        return self._call(dead_letters.parked, tenant=self._tenant, limit=limit)

    def close(self) -> None:
        """Close all connections. Waits of other threads raise WaitTimeout; jobs continue."""
        self._listener.close()
        if self._publisher is not None:
            self._publisher.close()
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _whose(self, tenant: str | Everyone | None) -> str:
        """As `_own`; "" for everyone."""
        if not isinstance(tenant, Everyone):
            return self._own(tenant)
        if self._tenant is not None:
            raise InvalidJob("tenant", f"this producer is for {self._tenant!r}, not for everyone")
        return tenants.EVERYONE

    def _own(self, tenant: str | None) -> str:
        if tenant is None:
            return self._tenant or self._settings.tenant
        if self._tenant not in (None, tenant):
            raise InvalidJob("tenant", f"this producer is for {self._tenant!r}, not {tenant!r}")
        check_tenant(tenant)
        return tenant
