"""POST /v1/chat/completions and /v1/models: a search in OpenAI's format."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.sse import format_sse_event

from marco_search.api.access import Asks, Caller, Reads
from marco_search.api.responses import IdempotencyKey, JsonRoute, error_body
from marco_search.errors import (
    InputError,
    InvalidJob,
    JobFailed,
    JobNotFound,
    MarcoError,
    PromptTooLong,
    WaitTimeout,
)
from marco_search.jobs import Job, JobResult, SearchOptions
from marco_search.kinds import completions, named_as_asked, parse_completion
from marco_search.store.queue.jobs import JobHandle
from marco_search.store.reads.queries import JobStatus
from producer import JobId

router = APIRouter(prefix="/v1", tags=["OpenAI"], route_class=JsonRoute)
_EXAMPLE = {
    "model": "tree",
    "messages": [{"role": "user", "content": "What is 17 x 23?"}],
    "max_completion_tokens": 4096,
    "n": 3,
}
HUNG_UP = 499
"""Status for metrics of a request whose client disconnected; it is never sent."""
EVERY_S, QUIET_S = 1.0, 15.0
"""Seconds between two checks of a job, and the longest silence of a stream."""


@router.post("/chat/completions", response_model=None, summary="Search for the best answers")
async def create(
    caller: Asks,
    request: Request,
    body: Annotated[dict[str, Any], Body(examples=[_EXAMPLE])],
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Submits a job, waits for it, and returns its n best distinct answers.

    The job outlives the request: a client that disconnects or times out finds it at /jobs/{id}.
    Its id is in the header Marco-Job-Id, in every part of a stream, and in an error.
    """
    named = {} if idempotency_key is None else {"idempotency_key": idempotency_key}
    job = parse_completion(body, **named)
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise InvalidJob("stream_options", "must be an object")
    with named_as_asked(body):
        handle = await caller.producer.submit(job)
    headers = {"Marco-Job-Id": str(handle.id)}
    if body.get("stream"):
        parts = _stream(caller, job, handle, usage=options.get("include_usage") is True)
        return StreamingResponse(parts, media_type="text/event-stream", headers=headers)
    result = await _unless_gone(request, caller, job, handle)
    if result is None:
        return Response(status_code=HUNG_UP)
    return JSONResponse(completions.completion(result), headers=headers)


async def _unless_gone(
    request: Request, caller: Caller, job: Job, handle: JobHandle
) -> JobResult | None:
    """The result; None as soon as the client has hung up. Raises as `_result` does."""
    found = asyncio.create_task(_result(caller, job, handle))
    gone = asyncio.create_task(_gone(request))
    stopping = asyncio.create_task(caller.service.stopping.wait())
    tasks = (found, gone, stopping)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if found.done():
            return await found
        if gone.done():
            return None
        raise _goes_on(handle)
    finally:
        for task in tasks:
            task.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _result(caller: Caller, job: Job, handle: JobHandle) -> JobResult:
    """The result of a job that succeeded. Raises JobFailed, WaitTimeout, PromptTooLong, InputError.

    The last two are for what only a worker can tell of a request.
    """
    try:
        result = await caller.producer.wait(handle, caller.service.settings.api_wait_s)
    except WaitTimeout:
        raise _goes_on(handle) from None
    if result.state != "succeeded":
        why = f"{result.error_type}: {result.error}; " if result.error else ""
        kind = _failure(job, result.error_type)
        raise kind(f"job {result.state}: {why}GET /jobs/{handle.id}/result has what it found")
    if result.archived:  # submitted again with its idempotency key
        raise JobNotFound(completions.gone(result))
    return result


def _failure(job: Job, error_type: str | None) -> type[MarcoError]:
    match error_type:
        case "PromptTooLong":
            return PromptTooLong
        case "InvalidProfile":
            return InputError
        case "NotOffered" if _chose_reward(job.options):
            return InputError
    return JobFailed


def _chose_reward(options: SearchOptions) -> bool:
    """Whether the caller chose the reward; the workers' own profile is the operator's choice."""
    overridden = {"reward", "verifier"} & options.overrides.keys()
    return bool(options.reward or options.verifier or options.profile or overridden)


def _goes_on(handle: JobHandle) -> WaitTimeout:
    where = f"GET /jobs/{handle.id}, or send the same Idempotency-Key"
    return WaitTimeout(f"the job is still running: {where}")


async def _stream(
    caller: Caller, job: Job, handle: JobHandle, *, usage: bool
) -> AsyncIterator[bytes]:
    """Chunks as server-sent events: progress in `marco`, then the answers, then [DONE]."""
    try:
        async for status in changes(caller, handle):
            yield _event(_chunk(str(handle.id), marco=progress(status))) if status else KEEP_ALIVE
        whole = completions.completion(await _result(caller, job, handle))
        for choice in whole["choices"]:
            yield _event(_chunk(str(handle.id), choice, model=whole["model"]))
            yield _event(_end(str(handle.id), choice, whole))
        if usage:
            last = _chunk(str(handle.id), model=whole["model"])
            yield _event(last | {"choices": [], "usage": whole["usage"]})
    except MarcoError as error:
        yield _event(error_body(error))
    yield format_sse_event(data_str="[DONE]")


KEEP_ALIVE = format_sse_event(comment="waiting")


async def changes(caller: Caller, job: JobId) -> AsyncIterator[JobStatus | None]:
    """A job's status, now and whenever it has come further; None after QUIET_S of silence.

    Ends with the job. Raises WaitTimeout when a request may wait no longer, or the server stops.
    """
    sent, sent_at = None, time.monotonic()
    follow = caller.producer.follow(job, caller.service.settings.api_wait_s, every_s=EVERY_S)
    async for (status,) in follow:
        if caller.service.stopping.is_set():
            raise WaitTimeout("the server is stopping; the job continues")
        now = progress(status)
        if now != sent:
            sent, sent_at = now, time.monotonic()
            yield status
        elif time.monotonic() - sent_at > QUIET_S - EVERY_S:
            sent_at = time.monotonic()
            yield None


def progress(status: JobStatus) -> dict[str, Any]:
    """The progress of a job."""
    names = {"job_id", "rounds", "rollouts", "rollout_budget", "nodes", "generated_tokens"}
    return {"state": status.shown_state, **status.model_dump(mode="json", include=names)}


def _chunk(
    job_id: str, choice: Mapping[str, Any] | None = None, *, model: str | None = None, **more: Any
) -> dict[str, Any]:
    delta = choice["message"] if choice else {}
    index = choice["index"] if choice else 0
    return {
        "id": job_id, "object": "chat.completion.chunk", "created": completions.created(job_id),
        "model": model or completions.DEFAULT_MODEL,
        "choices": [{"index": index, "delta": delta, "finish_reason": None}], **more,
    }  # fmt: skip


def _end(job_id: str, choice: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[str, Any]:
    last = {n: choice[n] for n in ("index", "finish_reason", "marco") if n in choice}
    chunk = _chunk(job_id, model=whole["model"], marco=whole["marco"])
    return chunk | {"choices": [last | {"delta": {}}]}


def _event(data: Mapping[str, Any]) -> bytes:
    return format_sse_event(data_str=json.dumps(data))


@router.get("/models", summary="List the values of `model`")
def list_models(caller: Reads) -> dict[str, Any]:
    """The default, the strategies and the profiles; combined as in tree:marco-o1."""
    return {"object": "list", "data": [_model(name) for name in completions.models()]}


@router.get("/models/{name}", summary="One of them")
def retrieve_model(caller: Reads, name: str) -> dict[str, Any]:
    """404 for an unknown name."""
    completions.named_options(name)
    return _model(name)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "marco-search"}
