"""What routes share: how bodies are read, and answers in OpenAI's shape, errors among them."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from marco_search import errors
from marco_search.errors import InputError, InvalidJob, MarcoError
from marco_search.jobs.validation import explain, shortened
from marco_search.kinds import strict_json

log = logging.getLogger(__name__)
BODY_LIMIT = 4 * 2**20
"""Bytes of a body; a route may have a `max_body_size` of its own."""
STATUS: dict[type[MarcoError], tuple[int, str]] = {
    errors.InvalidApiKey: (401, "authentication_error"),
    errors.RightsMissing: (403, "permission_error"),
    errors.JobNotFound: (404, "invalid_request_error"),
    errors.ModelNotFound: (404, "invalid_request_error"),
    errors.IdempotencyConflict: (409, "invalid_request_error"),
    errors.InvalidJob: (422, "invalid_request_error"),
    errors.InputError: (400, "invalid_request_error"),
    errors.Backpressure: (429, "rate_limit_error"),
    errors.PromptTooLong: (400, "invalid_request_error"),
    errors.WaitTimeout: (504, "timeout_error"),
    errors.ServiceError: (503, "server_error"),
    errors.SchemaMismatch: (503, "server_error"),
    errors.AccessDenied: (503, "server_error"),
    errors.InvalidSettings: (503, "server_error"),
    MarcoError: (500, "server_error"),
}
"""Status and OpenAI's `type` of each error; classes not listed have those of their base."""
HANDLED = (MarcoError, HTTPException, RequestValidationError, Exception)
_RETRY_S = 5.0  # after a service failed
_CODES = {404: "not_found", 405: "method_not_allowed"}
IdempotencyKey = Annotated[
    str | None,
    Header(description="Identifies the request: when repeated, it is not searched again"),
]


class _Request(Request):
    async def json(self) -> Any:
        return strict_json((await self.body()).decode("utf-8-sig"))


class JsonRoute(APIRoute):
    """A route that reads its body as the lines of a batch are read."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await answer(_Request(request.scope, request.receive))

        return strict


def uploaded_id(file_id: str) -> UUID:
    """The id of an uploaded file. Raises FileNotFound for other texts."""
    if not re.fullmatch("file-[0-9a-f]{32}", file_id):
        raise errors.FileNotFound(
            f"no file {file_id[:60]!r}; an id looks like file-{UUID(int=0).hex}"
        )
    return UUID(file_id.removeprefix("file-"))


def results_id(file_id: str) -> tuple[UUID, bool] | None:
    """The batch whose results a file has, and whether it is that of the errors."""
    found = re.fullmatch("file-(output|error)-([0-9a-f]{32})", file_id)
    return None if found is None else (UUID(found[2]), found[1] == "error")


def batch_uuid(batch_id: str) -> UUID:
    """The id of a batch. Raises JobNotFound for other texts."""
    try:
        return UUID(batch_id.removeprefix("batch_"))
    except ValueError:
        raise errors.JobNotFound(
            f"no batch {batch_id[:60]!r}; an id looks like batch_{UUID(int=0).hex}"
        ) from None


def unix(moment: datetime | None) -> int | None:
    """A time in seconds since 1970."""
    return None if moment is None else int(moment.timestamp())


def page(found: Sequence[dict[str, Any]], limit: int, name: str = "id") -> dict[str, Any]:
    """A page of `limit` of those found, one more if there are more; their ids are at `name`."""
    data = found[:limit]
    ids = {"first_id": data[0][name], "last_id": data[-1][name]} if data else {}
    return {"object": "list", "data": data, "has_more": len(found) > limit} | ids


async def answer(request: Request, error: Exception) -> Response:
    """An error as an answer."""
    match error:
        case MarcoError():
            return refusal(error)
        case HTTPException(__cause__=MarcoError() as cause):  # raised while the body was read
            return refusal(cause)
        case HTTPException():
            return _http_error(request, error)
        case RequestValidationError():
            return refusal(_invalid_request(error))
    # Starlette raises it again after this answer, and the server logs it with its traceback.
    body = _body("marco-search has a bug: its log has the traceback", "server_error", "bug")
    return JSONResponse(body, 500)


def refusal(error: MarcoError) -> JSONResponse:
    """The response for a MarcoError."""
    status, _ = _kind(error)
    retry_s = getattr(error, "retry_after_s", _RETRY_S if status == 503 else None)
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    if retry_s is not None:
        headers["Retry-After"] = str(math.ceil(retry_s))
    else:  # for OpenAI's client, which retries 409 and all from 500 on
        headers["X-Should-Retry"] = "false"
    return JSONResponse(error_body(error), status, headers)


def error_body(error: MarcoError) -> dict[str, Any]:
    """A MarcoError in OpenAI's format. Its code is its class: queue_full, job_not_found.

    The services' addresses are logged for the operator, and not sent to clients.
    """
    status, kind = _kind(error)
    message = str(error)
    if status == 503:
        log.error("%s", error)
        message = "a service that the API needs does not answer; the log of `marco serve` says more"
    code = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(error).__name__).lower()
    return _body(message, kind, code, getattr(error, "field", None))


def _kind(error: MarcoError) -> tuple[int, str]:
    return next(STATUS[c] for c in type(error).__mro__ if c in STATUS)


def _body(message: str, kind: str, code: str, param: str | None = None) -> dict[str, Any]:
    error = {"message": message, "type": kind, "param": param, "code": code}
    # A field's name is the caller's, and may be invalid Unicode.
    return {
        "error": {n: v and v.encode(errors="backslashreplace").decode() for n, v in error.items()}
    }


def too_large() -> JSONResponse:
    """The response to a body that is too large for its route."""
    message = f"the body is too large: only uploads may have more than {BODY_LIMIT:,} bytes"
    return JSONResponse(_body(message, "invalid_request_error", "body_too_large"), 413)


def _http_error(request: Request, error: HTTPException) -> Response:
    message = str(error.detail)
    if error.status_code == 404:
        message = f"there is no {request.url.path}; /docs lists what there is"
    elif message == "There was an error parsing the body":
        message = "the body can't be read: it must be JSON in UTF-8, not compressed"
    code = _CODES.get(error.status_code, "bad_request")
    body = _body(message, "invalid_request_error", code)
    return JSONResponse(body, error.status_code, error.headers)


def _invalid_request(error: RequestValidationError) -> MarcoError:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return InputError(f"the body is not valid JSON: {first['ctx']['error']}")
    place = ".".join(shortened(str(part)) for part in first["loc"][1:]) or "body"
    if "UploadFile" in first["msg"]:
        return InvalidJob(place, "must be a file of a form, sent as multipart/form-data")
    wrong = "must be a JSON object, sent with Content-Type: application/json"
    return InvalidJob(place, wrong if first["type"] == "dict_type" else explain(first))
