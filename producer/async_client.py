"""The producer for asyncio.

Its methods run in a thread, for the few milliseconds that they take. Waiting needs no thread: one
connection listens for all waits.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from copy import copy
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, overload

from marco_search.jobs import JobResult
from marco_search.settings import Settings
from marco_search.store.reads.queries import JobStatus
from producer.client import Producer
from producer.handles import BatchId, JobId, job_uuids
from producer.waits import POLL_S, Pending

P = ParamSpec("P")
R = TypeVar("R")


def _awaited(
    method: Callable[Concatenate[Producer, P], R],
) -> Callable[Concatenate["AsyncProducer", P], Coroutine[Any, Any, R]]:
    """The producer's method, run in a thread."""

    @wraps(method)
    async def call(self: "AsyncProducer", /, *args: P.args, **named: P.kwargs) -> R:
        return await asyncio.to_thread(method, self._sync, *args, **named)

    return call


class AsyncProducer:
    """`Producer` with coroutines: the same methods, results and errors."""

    def __init__(
        self,
        database_url: str | None = None,
        redis_url: str | None = None,
        tenant: str | None = None,
        settings: Settings | None = None,
        *,
        poll_s: float = POLL_S,
    ) -> None:
        self._sync = Producer(database_url, redis_url, tenant, settings, poll_s=poll_s)

    def for_tenant(self, tenant: str) -> Self:
        """See `Producer.for_tenant`."""
        bound = copy(self)
        bound._sync = self._sync.for_tenant(tenant)
        return bound

    submit = _awaited(Producer.submit)
    submit_many = _awaited(Producer.submit_many)
    submit_batch = _awaited(Producer.submit_batch)
    batch = _awaited(Producer.batch)
    batches = _awaited(Producer.batches)
    refused_lines = _awaited(Producer.refused_lines)
    restart_batch = _awaited(Producer.restart_batch)
    ended = _awaited(Producer.ended)
    standstill = _awaited(Producer.standstill)
    status = _awaited(Producer.status)
    states = _awaited(Producer.states)
    tree = _awaited(Producer.tree)
    config = _awaited(Producer.config)
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
        in_order = [found[str(job_id)] for job_id in ids]
        return in_order[0] if isinstance(jobs, JobId) else in_order

    async def results(
        self, jobs: JobId | Iterable[JobId], timeout_s: float | None = None
    ) -> AsyncIterator[JobResult]:
        """See `Producer.results`."""
        start = self._sync._for_results
        async for result in self._wait(*await asyncio.to_thread(start, jobs, timeout_s)):
            yield result

    async def batch_results(self, batch_id: BatchId) -> AsyncIterator[JobResult]:
        """See `Producer.batch_results`."""
        found = self._sync.batch_results(batch_id)
        while (result := await asyncio.to_thread(next, found, None)) is not None:
            yield result

    async def follow(
        self,
        jobs: JobId | Iterable[JobId],
        timeout_s: float | None = None,
        *,
        every_s: float = 0.3,
    ) -> AsyncIterator[list[JobStatus]]:
        """See `Producer.follow`."""
        async for lines in self._wait(*self._sync._for_following(jobs, timeout_s, every_s)):
            yield lines

    async def _wait(self, pending: Pending, read: Callable[[], list[R]]) -> AsyncIterator[R]:
        loop, woken = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(woken.set)

        with self._sync._listener.subscribed(wake) as take_notices:
            while pending.ids:
                # Otherwise only jobs of other waits have ended.
                for found in await asyncio.to_thread(read) if pending.to_read else ():
                    yield found
                if pending.ids:
                    patience_s = pending.patience()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(woken.wait(), patience_s)
                    woken.clear()
                    pending.notified(take_notices())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
