"""/v1/files: files that are uploaded for batches, and those of a batch's results.

Files of results are made from the results each time that they are asked for.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from fastapi import APIRouter, Form, Query, UploadFile
from fastapi.requests import Request
from fastapi.responses import Response, StreamingResponse
from fastapi.routing import APIRoute
from starlette.types import Message

from marco_search.api.access import Caller, Reads, Submits, needs
from marco_search.api.objects import page, results_id, unix, uploaded_id
from marco_search.errors import InvalidJob
from marco_search.jobs.validation import another_format, flaw
from marco_search.kinds import completions
from marco_search.store import uploaded_files
from marco_search.store.queue.batches import BatchLine
from marco_search.store.uploaded_files import UploadedFile

router = APIRouter(prefix="/v1", tags=["files and batches"])

FILE_LIMIT: Final = 200 * 2**20
"""Bytes of a file, as OpenAI has it."""
KEPT_S = 30 * 86400
"""Seconds that a file is kept where the upload does not say."""
_FORM = 2**16  # bytes of a form beside its file
_COMING: Counter[str] = Counter()  # bytes that this process is being sent, by tenant


class _Upload(APIRoute):
    """A route whose body counts against the tenant's limit before it comes and while it does."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def limited(request: Request) -> Response:
            caller = needs("submit")(request)  # before the body is read
            held, size = await asyncio.to_thread(_held, caller), 0
            declared = request.headers.get("content-length", "")
            with _coming(caller, held) as count:
                count(int(declared) if declared.isdecimal() else 0)

                async def receive() -> Message:
                    nonlocal size
                    message = await request.receive()
                    size += len(message.get("body", b""))
                    count(size)
                    return message

                return await answer(Request(request.scope, receive))

        return limited


def _held(caller: Caller) -> int:
    with caller.service.database.transaction() as conn:
        return uploaded_files.held(conn, tenant=caller.key.tenant)


@contextmanager
def _coming(caller: Caller, held: int) -> Iterator[Callable[[int], None]]:
    """Gives what is told how many bytes an upload has so far, and raises InputError once they,
    with `held` and what else this process is being sent, are more than the tenant may have."""
    tenant, most = caller.key.tenant, _most(caller)
    counted = 0

    def count(size: int) -> None:
        nonlocal counted
        more = max(0, size - counted)
        counted += more
        _COMING[tenant] += more
        if (whole := held + _COMING[tenant]) > most + _FORM:
            raise uploaded_files.too_much(tenant, whole, most)

    try:
        yield count
    finally:
        _COMING[tenant] -= counted


def _most(caller: Caller) -> int:
    return caller.service.settings.api_files_mb * 2**20


def create_file(
    caller: Submits,
    file: UploadFile,
    purpose: Annotated[str, Form()],
    anchor: Annotated[Literal["created_at"], Form(alias="expires_after[anchor]")] = "created_at",
    seconds: Annotated[int, Form(alias="expires_after[seconds]", ge=3600, le=KEPT_S)] = KEPT_S,
) -> dict[str, Any]:
    """A file is kept for 30 days, or as `expires_after` says, or until it is deleted."""
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
    with caller.service.database.transaction() as conn:
        stored = uploaded_files.store(
            conn, file.file, tenant=caller.key.tenant, name=name, expires_in_s=seconds,
            most=_most(caller),
        )  # fmt: skip
    return _file(stored)


router.add_api_route(
    "/files", create_file, methods=["POST"], summary="Upload a JSON Lines file for a batch",
    max_body_size=FILE_LIMIT, route_class_override=_Upload,
)  # fmt: skip


@router.get("/files", summary="List the files that were uploaded")
def list_files(
    caller: Reads,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: str = "batch",
) -> dict[str, Any]:
    """Without the files of results, which the batches name."""
    if purpose != "batch":
        return page([], limit)
    with caller.service.database.transaction() as conn:
        found = uploaded_files.page(
            conn, tenant=caller.key.tenant, after=uploaded_id(after) if after else None,
            newest_first=order == "desc", limit=limit + 1,
        )  # fmt: skip
    return page([_file(one) for one in found], limit)


@router.get("/files/{file_id}", summary="A file's name and size")
async def retrieve_file(caller: Reads, file_id: str) -> dict[str, Any]:
    """Of a file of results the size is found out by making it."""
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


@router.get("/files/{file_id}/content", summary="What is in a file")
async def file_content(caller: Reads, file_id: str) -> StreamingResponse:
    """Of a file of results: the lines of those requests that have ended, in the batch's order."""
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
    """The jobs of its batches stay, and so do the files of results."""
    if results_id(file_id) is not None:
        raise InvalidJob("file_id", "a file of results is made from a batch's jobs: it stays")
    with caller.service.database.transaction() as conn:
        uploaded_files.delete(conn, uploaded_id(file_id), tenant=caller.key.tenant)
    return {"id": file_id, "object": "file", "deleted": True}


async def _lines(caller: Caller, batch_id: UUID, errors: bool) -> AsyncIterator[bytes]:
    """The output file of a batch, or its file of errors."""
    async for result in caller.producer.batch_results(batch_id):
        if (result.state == "succeeded") is not errors:
            yield _line(completions.response(result))
    for line in await caller.producer.refused_lines(batch_id) if errors else ():
        reason = {"code": "invalid_request", "message": _reason(line)}
        name = f"{batch_id}-{line.line}"
        yield _line({"id": name, "custom_id": line.custom_id, "response": None, "error": reason})


def _reason(line: BatchLine) -> str:
    return f"line {line.line}: " + (f"{line.field}: " if line.field else "") + str(line.reason)


def _line(data: dict[str, Any]) -> bytes:
    return json.dumps(data, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def stored_file(caller: Caller, file_id: UUID) -> UploadedFile:
    """An uploaded file of the caller's tenant. Raises FileNotFound."""
    with caller.service.database.transaction() as conn:
        return uploaded_files.find(conn, file_id, tenant=caller.key.tenant)


def _file(file: UploadedFile) -> dict[str, Any]:
    return {
        "id": f"file-{file.id.hex}", "object": "file", "bytes": file.bytes,
        "created_at": unix(file.created_at), "expires_at": unix(file.expires_at),
        "filename": file.name, "purpose": "batch", "status": "processed",
    }  # fmt: skip
