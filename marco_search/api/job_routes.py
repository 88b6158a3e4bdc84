"""/jobs: what the Python producer does, over HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event

from marco_search.api.access import Caller, Cancels, Reads, Submits
from marco_search.api.chat_completions import KEEP_ALIVE, changes
from marco_search.api.responses import IdempotencyKey, JsonRoute, batch_uuid, error_body, page
from marco_search.errors import InvalidJob, JobNotFound, MarcoError, WaitTimeout
from marco_search.jobs import JobResult
from marco_search.render.document import document
from marco_search.store.queue.states import JobState
from marco_search.store.reads import job_record, queries
from marco_search.store.reads.queries import JobFilter, JobStatus
from producer.handles import job_uuid

router = APIRouter(prefix="/jobs", tags=["jobs"], route_class=JsonRoute)
_EXAMPLE = {"kind": "reasoning", "question": "What is 17 x 23?", "options": {"strategy": "tree"}}


@router.post("", status_code=202, summary="Submit a job")
async def submit(
    caller: Submits,
    response: Response,
    body: Annotated[dict[str, Any], Body(examples=[_EXAMPLE])],
    idempotency_key: IdempotencyKey = None,
) -> dict[str, Any]:
    """The body is a line of `marco submit`. 200 if the idempotency key is already known."""
    if idempotency_key is not None:
        if body.get("idempotency_key", idempotency_key) != idempotency_key:
            raise InvalidJob("idempotency_key", "differs from the header Idempotency-Key")
        body = body | {"idempotency_key": idempotency_key}
    job = await caller.producer.submit(body)
    response.status_code = 202 if job.created else 200
    response.headers["Location"] = f"/jobs/{job.id}"
    return {"job_id": job.id, "created": job.created}


@router.get("", summary="List jobs, newest first")
def list_jobs(
    caller: Reads,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    state: JobState | None = None,
    batch_id: str | None = None,
) -> dict[str, Any]:
    """The jobs that come `after` one in the list: of a page's `last_id`, the next page."""
    wanted = JobFilter(
        tenant=caller.key.tenant, state=state, batch=batch_uuid(batch_id) if batch_id else None,
        before=job_uuid(after) if after else None,
    )  # fmt: skip
    found = caller.service.database.call(queries.page, wanted, limit=limit + 1).jobs
    return page([job.model_dump(mode="json") for job in found], limit, "job_id")


@router.get("/{job_id}", summary="A job's status")
async def status(caller: Reads, job_id: str) -> JobStatus:
    """A row of the view audit.jobs."""
    return await caller.producer.status(job_id)


@router.get("/{job_id}/result", summary="The result of a job that has ended")
async def result(caller: Reads, job_id: str) -> JobResult:
    """404 before it has ended."""
    await caller.producer.states([job_id])
    for found in await caller.producer.ended([job_id]):
        return found
    raise JobNotFound(f"job {job_id} has not ended: GET /jobs/{job_id}/events tells when it has")


@router.get("/{job_id}/tree", summary="Its search tree, as stored so far")
def tree(caller: Reads, job_id: str) -> dict[str, Any]:
    """As `marco show --format json` prints it: nodes, rollouts, answers, audit log; no tokens."""
    wanted = job_uuid(job_id)
    with caller.service.database.transaction(one_moment=True) as conn:
        queries.statuses(conn, [wanted], tenant=caller.key.tenant)
        return document(job_record.read(conn, wanted))


@router.post("/{job_id}/cancel", summary="Cancel it")
async def cancel(caller: Cancels, job_id: str) -> dict[str, Any]:
    """Answers found so far are kept. A running job stops within two seconds."""
    return {"job_id": job_id, "state": await caller.producer.cancel(job_id)}


@router.get("/{job_id}/events", summary="Follow it", response_class=StreamingResponse)
async def events(caller: Reads, job_id: str) -> StreamingResponse:
    """Server-sent events: `status` on progress, `result` at the end, or `error`."""
    await caller.producer.states([job_id])
    return StreamingResponse(parts(caller, job_id), media_type="text/event-stream")


async def parts(caller: Caller, job_id: str) -> AsyncIterator[bytes]:
    """The events, as they are sent."""
    try:
        async for now in changes(caller, job_id):
            yield _event("status", now) if now else KEEP_ALIVE
        for found in await caller.producer.ended([job_id]):
            yield _event("result", found)
    except WaitTimeout:
        return  # clients of server-sent events connect again
    except MarcoError as error:
        yield format_sse_event(event="error", data_str=json.dumps(error_body(error)))


def _event(name: str, data: JobStatus | JobResult) -> bytes:
    return format_sse_event(event=name, data_str=json.dumps(data.model_dump(mode="json")))
