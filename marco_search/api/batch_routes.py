"""/v1/files and /v1/batches: uploaded files become batches.

The lines are stored in the background by the producer. If this process ends meanwhile, the upload
continues when the batch is next retrieved, from any process. Result files are built from the
results at each download.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from datetime import timedelta
from typing import Annotated, Any, Final, Literal
from uuid import UUID, uuid5

from fastapi import APIRouter, Form, Query, UploadFile
from fastapi.requests import Request
from fastapi.responses import Response, StreamingResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import Message

from marco_search.api.access import Caller, Cancels, Reads, Submits, needs
from marco_search.api.responses import (
    IdempotencyKey,
    JsonRoute,
    batch_uuid,
    page,
    results_id,
    unix,
    uploaded_id,
)
from marco_search.errors import (
    Backpressure,
    BatchNotFound,
    IdempotencyConflict,
    InvalidJob,
    MarcoError,
)
from marco_search.jobs.validation import another_format, at_most, flaw, spelt
from marco_search.kinds import completions
from marco_search.store import uploaded_files
from marco_search.store.queue import batches
from marco_search.store.queue.batches import Batch, BatchLine
from marco_search.store.queue.jobs import new_job_id
from marco_search.store.reads import queries
from marco_search.store.uploaded_files import UploadedFile
from producer.uploads import lines_of

log = logging.getLogger(__name__)
router = APIRouter(prefix="/v1", tags=["files and batches"], route_class=JsonRoute)

FILE_LIMIT: Final = 200 * 2**20
"""Bytes of a file, as in OpenAI's API."""
KEPT_S = 30 * 86400
"""Seconds that a file is kept where the upload does not say."""
_MOST_SHOWN, _LINES_AT_ONCE = 100, 1000  # lines that were refused
_FORM = 2**16  # bytes of a form beside its file
_COMING: Counter[str] = Counter()  # bytes that this process is being sent, by tenant
_UNITS = {"m": 60, "h": 3600, "d": 86400}
_RETRY_S = 5.0  # while too much is queued
_KEYED = UUID("6d0c1a52-5d0b-4b5e-9c57-0c1d5fb9d3a4")  # ids of batches with an idempotency key
_FEEDS: dict[UUID, asyncio.Task[None]] = {}  # batches that this process stores lines of


class _Upload(APIRoute):
    """A route whose body counts against the tenant's limit before it comes and while it does."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def limited(request: Request) -> Response:
            caller = needs("submit")(request)  # before the body is read
            tenant, most = caller.key.tenant, _most(caller)
            database = caller.service.database
            held = await asyncio.to_thread(database.call, uploaded_files.held, tenant=tenant)
            declared = request.headers.get("content-length", "")
            counted = size = 0

            def count(so_far: int) -> None:
                nonlocal counted
                more = max(0, so_far - counted)
                counted += more
                _COMING[tenant] += more
                if (whole := held + _COMING[tenant]) > most + _FORM:
                    raise uploaded_files.too_much(tenant, whole, most)

            async def receive() -> Message:
                nonlocal size
                message = await request.receive()
                size += len(message.get("body", b""))
                count(size)
                return message

            try:
                count(int(declared) if declared.isdecimal() else 0)
                return await answer(Request(request.scope, receive))
            finally:
                _COMING[tenant] -= counted

        return limited


def _most(caller: Caller) -> int:
    return caller.service.settings.api_files_mb * 2**20


def create_file(
    caller: Submits,
    file: UploadFile,
    purpose: Annotated[str, Form()],
    anchor: Annotated[Literal["created_at"], Form(alias="expires_after[anchor]")] = "created_at",
    seconds: Annotated[int, Form(alias="expires_after[seconds]", ge=3600, le=KEPT_S)] = KEPT_S,
) -> dict[str, Any]:
    """A file is kept for 30 days, or as long as `expires_after` says, or until it is deleted."""
    if purpose != "batch":
        raise InvalidJob("purpose", "must be batch: files serve batches only")
    name = file.filename or "file.jsonl"
    if (reason := flaw(name, 255)) is not None:
        raise InvalidJob("file", f"its name {reason}")
    begin = file.file.read(4096)
    file.file.seek(0)
    if not begin:
        raise InvalidJob("file", "is empty")
    if (found := another_format(begin)) is not None:
        raise InvalidJob("file", f"must be JSON Lines; it is {found[0]}")
    stored = caller.service.database.call(
        uploaded_files.store, file.file, tenant=caller.key.tenant, name=name,
        expires_in_s=seconds, most=_most(caller),
    )  # fmt: skip
    return _file(stored)


router.add_api_route(
    "/files", create_file, methods=["POST"], summary="Upload a JSON Lines file for a batch",
    max_body_size=FILE_LIMIT, route_class_override=_Upload,
)  # fmt: skip


@router.get("/files", summary="List the uploaded files")
def list_files(
    caller: Reads,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: str = "batch",
) -> dict[str, Any]:
    """Without result files, which the batches name."""
    if purpose != "batch":
        return page([], limit)
    found = caller.service.database.call(
        uploaded_files.page, tenant=caller.key.tenant, newest_first=order == "desc",
        after=uploaded_id(after) if after else None, limit=limit + 1,
    )  # fmt: skip
    return page([_file(one) for one in found], limit)


@router.get("/files/{file_id}", summary="A file's name and size")
async def retrieve_file(caller: Reads, file_id: str) -> dict[str, Any]:
    """A result file is built to determine its size."""
    if (results := results_id(file_id)) is None:
        return _file(await asyncio.to_thread(stored_file, caller, uploaded_id(file_id)))
    batch = await caller.producer.batch(results[0])
    size = 0
    async for line in _lines(caller, *results):
        size += len(line)
    return {
        "id": file_id, "object": "file", "bytes": size, "created_at": unix(batch.created_at),
        "expires_at": None, "filename": f"{file_id}.jsonl", "purpose": "batch_output",
        "status": "processed",
    }  # fmt: skip


@router.get("/files/{file_id}/content", summary="Download a file")
async def file_content(caller: Reads, file_id: str) -> StreamingResponse:
    """A result file has the lines of requests that have ended, in the batch's order."""
    parts: AsyncIterator[bytes] | Iterator[bytes]
    if (results := results_id(file_id)) is None:
        stored = await asyncio.to_thread(stored_file, caller, uploaded_id(file_id))
        parts = uploaded_files.content(caller.service.database, stored)
    else:
        await caller.producer.batch(results[0])  # is it there?
        parts = _lines(caller, *results)
    return StreamingResponse(parts, media_type="application/jsonl")


@router.delete("/files/{file_id}", summary="Delete a file")
def delete_file(caller: Submits, file_id: str) -> dict[str, Any]:
    """The jobs of its batches are kept, and so are the result files."""
    if results_id(file_id) is not None:
        raise InvalidJob(
            "file_id", "result files are made from a batch's jobs and can't be deleted"
        )
    wanted = uploaded_id(file_id)
    caller.service.database.call(uploaded_files.delete, wanted, tenant=caller.key.tenant)
    return {"id": file_id, "object": "file", "deleted": True}


async def _lines(caller: Caller, batch_id: UUID, errors: bool) -> AsyncIterator[bytes]:
    """The output file of a batch, or its file of errors."""
    async for result in caller.producer.batch_results(batch_id):
        if (result.state == "succeeded") is not errors:
            yield _line(completions.response(result))
    if not errors:
        return
    async for line in _refused(caller, batch_id):
        reason = {"code": "invalid_request", "message": _reason(line)}
        name = f"{batch_id}-{line.line}"
        yield _line({"id": name, "custom_id": line.custom_id, "response": None, "error": reason})


async def _refused(caller: Caller, batch_id: UUID) -> AsyncIterator[BatchLine]:
    """All lines that were refused, of which there may be millions."""
    after, refused = 0, caller.producer.refused_lines
    while found := await refused(batch_id, after=after, limit=_LINES_AT_ONCE):
        for line in found:
            yield line
        after = found[-1].line


def _reason(line: BatchLine) -> str:
    return f"line {line.line}: " + (f"{line.field}: " if line.field else "") + str(line.reason)


def _line(data: dict[str, Any]) -> bytes:
    return json.dumps(data, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def stored_file(caller: Caller, file_id: UUID) -> UploadedFile:
    """An uploaded file of the caller's tenant. Raises FileNotFound."""
    return caller.service.database.call(uploaded_files.find, file_id, tenant=caller.key.tenant)


def _file(file: UploadedFile) -> dict[str, Any]:
    return {
        "id": f"file-{file.id.hex}", "object": "file", "bytes": file.bytes,
        "created_at": unix(file.created_at), "expires_at": unix(file.expires_at),
        "filename": file.name, "purpose": "batch", "status": "processed",
    }  # fmt: skip


class BatchRequest(BaseModel):
    """What makes a file a batch."""

    model_config = ConfigDict(extra="forbid")

    input_file_id: str
    endpoint: Literal["/v1/chat/completions"]
    completion_window: Annotated[
        str, spelt("[1-9][0-9]{0,3}[mhd]", "a duration such as 90m, 24h or 7d")
    ] = Field(description="As 90m, 24h or 7d: requests that were not begun by then expire")
    metadata: dict[
        Annotated[str, at_most(64)], Annotated[str, at_most(512, empty=True)]
    ] | None = Field(None, max_length=16)  # fmt: skip


@router.post("/batches", summary="Create a batch from a file")
async def create_batch(
    caller: Submits, request: BatchRequest, idempotency_key: IdempotencyKey = None
) -> dict[str, Any]:
    """Its lines are stored in the background. An invalid one only goes to the error file."""
    if idempotency_key is not None and (reason := flaw(idempotency_key, 200)) is not None:
        raise InvalidJob("Idempotency-Key", reason)
    made = await asyncio.to_thread(_begin, caller, request, idempotency_key)
    _feed_on(caller, made)
    return _batch(made)


@router.get("/batches", summary="List the batches, newest first")
async def list_batches(
    caller: Reads, after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> dict[str, Any]:
    """Includes batches from the command line and from Python."""
    place = batch_uuid(after) if after else None
    found = await caller.producer.batches(limit=limit + 1, after=place)
    return page([_batch(one) for one in found], limit)


@router.get("/batches/{batch_id}", summary="A batch's status")
async def retrieve_batch(caller: Reads, batch_id: str) -> dict[str, Any]:
    """`output_file_id` and `error_file_id` name its results at any time, as far as they are.

    `model` and `usage` are there once it has ended, and not in lists.
    """
    found = await caller.producer.batch(batch_uuid(batch_id))
    _feed_on(caller, found)
    refused = list[BatchLine]()
    if _status(found) == "failed":
        refused = await caller.producer.refused_lines(found.id, limit=_MOST_SHOWN)
    shown = _batch(found, refused)
    if found.completed_at and found.states and not found.left:
        shown |= await asyncio.to_thread(_usage, caller, found)
    return shown


@router.post("/batches/{batch_id}/cancel", summary="Cancel what has not ended")
async def cancel_batch(caller: Cancels, batch_id: str) -> dict[str, Any]:
    """Existing results are kept."""
    found = await caller.producer.batch(batch_uuid(batch_id))
    await caller.producer.cancel_all(batch_id=found.id)
    return _batch(await caller.producer.batch(found.id))


def _begin(caller: Caller, request: BatchRequest, key: str | None) -> Batch:
    """A new batch, or the one that was made with this idempotency key."""
    tenant, file_id = caller.key.tenant, uploaded_id(request.input_file_id)
    batch_id = new_job_id() if key is None else uuid5(_KEYED, f"{tenant}\0{key}")
    seconds = int(request.completion_window[:-1]) * _UNITS[request.completion_window[-1]]
    with caller.service.database.transaction() as conn:
        try:
            made = batches.find(conn, batch_id, tenant=tenant)
        except BatchNotFound:
            file = uploaded_files.kept(conn, file_id, tenant=tenant)
            made = batches.begin(
                conn, tenant=tenant, source=file.name, metadata=request.metadata,
                batch_id=batch_id, file_id=file_id, expires_in_s=seconds,
            )  # fmt: skip
    window = made.expires_at and made.expires_at - made.created_at
    if (made.file_id, made.metadata, window) != (
        file_id, request.metadata or {}, timedelta(seconds=seconds),
    ):  # fmt: skip
        raise IdempotencyConflict("the Idempotency-Key was used for a different batch")
    return made


def _usage(caller: Caller, batch: Batch) -> dict[str, Any]:
    sums = caller.service.database.call(queries.batch_totals, [batch.id])[0]
    return {
        "model": sums.model,
        "usage": {
            "input_tokens": sums.prompt_tokens,
            "input_tokens_details": {"cached_tokens": sums.cached_tokens},
            "output_tokens": sums.generated_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},  # not counted apart
            "total_tokens": sums.prompt_tokens + sums.generated_tokens,
        },
    }


def _feed_on(caller: Caller, batch: Batch) -> None:
    """Store the rest of a batch's lines in the background, unless that is in progress."""
    done = batch.completed_at or batch.cancelled_at or batch.file_id is None
    if not done and batch.id not in _FEEDS:
        task = asyncio.get_running_loop().create_task(_feed(caller, batch))
        _FEEDS[batch.id] = task
        task.add_done_callback(lambda _: _FEEDS.pop(batch.id))


async def _feed(caller: Caller, batch: Batch) -> None:
    stopped, service = threading.Event(), caller.service
    try:
        file = await asyncio.to_thread(stored_file, caller, batch.file_id or batch.id)
        while True:
            parts = _until(stopped, uploaded_files.content(service.database, file))
            try:
                async with service.turns[batch.tenant], service.uploads:
                    await caller.producer.submit_batch(lines_of(parts), batch_id=batch.id)
            except Backpressure as full:
                await asyncio.sleep(full.retry_after_s or _RETRY_S)
            else:
                return
    except MarcoError as error:  # cancelled, or at it in another process
        log.warning("batch %s: %s", batch.id, error)
    finally:
        stopped.set()  # the thread that reads the lines


def _until(stopped: threading.Event, parts: Iterable[bytes]) -> Iterator[bytes]:
    for part in parts:
        if stopped.is_set():
            raise MarcoError("the server is stopping")
        yield part


def _status(batch: Batch) -> str:
    if batch.cancelled_at is not None:
        return "cancelling" if batch.left else "cancelled"
    if batch.completed_at is None:
        return "validating"
    if batch.left:
        return "in_progress"
    if batch.refused and not batch.states:
        return "failed"
    return "expired" if batch.states.get("expired") else "completed"


def _window(seconds: int) -> str:
    """The time as a request may have it; empty for none."""
    if not seconds:
        return ""
    return f"{seconds // 60}m" if seconds % 3600 else f"{seconds // 3600}h"


def _batch(batch: Batch, refused: Iterable[BatchLine] = ()) -> dict[str, Any]:
    status, ended = _status(batch), unix(batch.finished_at)
    jobs, succeeded = sum(batch.states.values()), batch.states.get("succeeded", 0)
    failed = jobs - succeeded - batch.left + batch.refused
    window_s = int((batch.expires_at - batch.created_at).total_seconds()) if batch.expires_at else 0
    errors = [
        {"code": "invalid_request", "line": one.line, "message": one.reason, "param": one.field}
        for one in refused
    ]
    return {
        "id": f"batch_{batch.id.hex}",
        "object": "batch",
        "endpoint": completions.ENDPOINT,
        "errors": {"object": "list", "data": errors} if errors else None,
        "input_file_id": f"file-{batch.file_id.hex}" if batch.file_id else "",
        "completion_window": _window(window_s),
        "status": status,
        "output_file_id": f"file-output-{batch.id.hex}" if succeeded else None,
        "error_file_id": f"file-error-{batch.id.hex}" if failed else None,
        "created_at": unix(batch.created_at),
        "in_progress_at": unix(batch.completed_at),
        "expires_at": unix(batch.expires_at),
        "finalizing_at": ended,
        "completed_at": ended if status == "completed" else None,
        "failed_at": unix(batch.completed_at) if status == "failed" else None,
        "expired_at": ended if status == "expired" else None,
        "cancelling_at": unix(batch.cancelled_at),
        "cancelled_at": ended or unix(batch.cancelled_at) if status == "cancelled" else None,
        "request_counts": {
            "total": jobs + batch.refused, "completed": succeeded, "failed": failed,
        },
        "metadata": batch.metadata,
    }  # fmt: skip
