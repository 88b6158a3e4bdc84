"""The producer for asyncio.

Submitting and asking take milliseconds and run in a thread; waiting takes none: however
many tasks wait, one connection listens for all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, overload
from uuid import UUID

from marco_search.jobs import JobResult
from marco_search.settings import Settings
from producer.client import Producer
from producer.handles import JobId, job_uuids
from producer.pending import Pending

P = ParamSpec("P")
R = TypeVar("R")


def _awaited(
    method: Callable[Concatenate[Producer, P], R],
) -> Callable[Concatenate[AsyncProducer, P], Coroutine[Any, Any, R]]:
    """The producer's method, run in a thread."""

    @wraps(method)
    async def call(self: AsyncProducer, /, *args: P.args, **named: P.kwargs) -> R:
        return await asyncio.to_thread(method, self._sync, *args, **named)

    return call


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

    submit = _awaited(Producer.submit)
    submit_many = _awaited(Producer.submit_many)
    states = _awaited(Producer.states)
    ended = _awaited(Producer.ended)
    status = _awaited(Producer.status)
    cancel = _awaited(Producer.cancel)
    cancel_many = _awaited(Producer.cancel_many)
    cancel_all = _awaited(Producer.cancel_all)
    pause = _awaited(Producer.pause)
    resume = _awaited(Producer.resume)
    pause_tenant = _awaited(Producer.pause_tenant)
    resume_tenant = _awaited(Producer.resume_tenant)
    set_quota = _awaited(Producer.set_quota)
    dead_letters = _awaited(Producer.dead_letters)
    dead_letter = _awaited(Producer.dead_letter)
    requeue = _awaited(Producer.requeue)
    restart = _awaited(Producer.restart)
    waiting_for_model = _awaited(Producer.waiting_for_model)
    close = _awaited(Producer.close)

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
