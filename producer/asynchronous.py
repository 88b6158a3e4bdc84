"""The producer for asyncio.

Submitting and asking take milliseconds and run in a thread; waiting takes none: however
many tasks wait, one connection listens for all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from types import TracebackType
from typing import Any, Self, overload
from uuid import UUID

from marco_search.jobs import Job, JobResult
from marco_search.settings import Settings
from marco_search.store.queries import JobStatus
from marco_search.store.states import JobState
from producer.client import Producer
from producer.handles import JobHandle, JobId, job_uuids
from producer.pending import Pending


class AsyncProducer:
    """A `Producer` whose methods are awaited; each does and raises the same."""

    def __init__(
        self,
        database_url: str | None = None,
        redis_url: str | None = None,
        tenant: str | None = None,
        settings: Settings | None = None,
    ) -> None:
        self._sync = Producer(database_url, redis_url, tenant, settings)

    async def submit(self, job: Job | Mapping[str, Any]) -> JobHandle:
        """See `Producer.submit`."""
        return await asyncio.to_thread(self._sync.submit, job)

    async def submit_many(
        self, jobs: Iterable[Job | Mapping[str, Any]], *, batch_id: UUID | None = None
    ) -> list[JobHandle]:
        """See `Producer.submit_many`."""
        return await asyncio.to_thread(self._sync.submit_many, jobs, batch_id=batch_id)

    @overload
    async def wait(  # type: ignore[overload-overlap]  # text is one id, not an iterable of them
        self, jobs: JobId, timeout_s: float | None = None
    ) -> JobResult: ...
    @overload
    async def wait(
        self, jobs: Iterable[JobId], timeout_s: float | None = None
    ) -> list[JobResult]: ...
    async def wait(
        self, jobs: JobId | Iterable[JobId], timeout_s: float | None = None
    ) -> JobResult | list[JobResult]:
        """See `Producer.wait`."""
        ids = job_uuids(jobs)
        found = {result.job_id: result async for result in self.results(ids, timeout_s)}
        if isinstance(jobs, JobId):
            return found[str(ids[0])]
        return [found[str(job_id)] for job_id in ids]

    async def results(
        self, jobs: JobId | Iterable[JobId], timeout_s: float | None = None
    ) -> AsyncIterator[JobResult]:
        """See `Producer.results`."""
        ids = job_uuids(jobs)
        await asyncio.to_thread(self._sync.states, ids)
        pending = Pending(ids, timeout_s)
        loop = asyncio.get_running_loop()
        told: asyncio.Queue[UUID | None] = asyncio.Queue()

        def tell(job_id: UUID | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(told.put_nowait, job_id)

        with self._sync.listener.subscribed(tell):
            while pending.ids:
                for result in await asyncio.to_thread(self._sync.ended, pending.look_at):
                    pending.done(UUID(result.job_id))
                    yield result
                if pending.ids:
                    pending.heard(await _drain(told, pending.patience()))

    async def status(self, job: JobId) -> JobStatus:
        """See `Producer.status`."""
        return await asyncio.to_thread(self._sync.status, job)

    async def cancel(self, job: JobId) -> JobState:
        """See `Producer.cancel`."""
        return await asyncio.to_thread(self._sync.cancel, job)

    async def pause(self, job: JobId) -> JobState:
        """See `Producer.pause`."""
        return await asyncio.to_thread(self._sync.pause, job)

    async def resume(self, job: JobId) -> JobState:
        """See `Producer.resume`."""
        return await asyncio.to_thread(self._sync.resume, job)

    async def requeue(self, jobs: JobId | Iterable[JobId]) -> list[UUID]:
        """See `Producer.requeue`."""
        return await asyncio.to_thread(self._sync.requeue, jobs)

    async def close(self) -> None:
        """See `Producer.close`."""
        await asyncio.to_thread(self._sync.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


async def _drain(told: asyncio.Queue[UUID | None], patience_s: float) -> list[UUID | None]:
    """All that was told; if nothing was, the first within `patience_s`."""
    heard = []
    try:
        heard.append(await asyncio.wait_for(told.get(), patience_s))
        while True:
            heard.append(told.get_nowait())
    except (TimeoutError, asyncio.QueueEmpty):
        return heard
