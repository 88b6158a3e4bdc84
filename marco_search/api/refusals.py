"""Errors as answers, in OpenAI's shape."""

from __future__ import annotations

import logging
import math
import re
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from marco_search.errors import (
    AccessDenied,
    Backpressure,
    IdempotencyConflict,
    InputError,
    InvalidApiKey,
    InvalidJob,
    InvalidSettings,
    JobNotFound,
    MarcoError,
    ModelNotFound,
    PromptTooLong,
    RightsMissing,
    SchemaMismatch,
    ServiceError,
    WaitTimeout,
)

log = logging.getLogger(__name__)
BODY_LIMIT = 4 * 2**20
"""Bytes of a body; a route may have a `max_body_size` of its own."""
STATUS: dict[type[MarcoError], tuple[int, str]] = {
    InvalidApiKey: (401, "authentication_error"),
    RightsMissing: (403, "permission_error"),
    JobNotFound: (404, "invalid_request_error"),
    ModelNotFound: (404, "invalid_request_error"),
    IdempotencyConflict: (409, "invalid_request_error"),
    InvalidJob: (422, "invalid_request_error"),
    InputError: (400, "invalid_request_error"),
    Backpressure: (429, "rate_limit_error"),
    PromptTooLong: (400, "invalid_request_error"),
    WaitTimeout: (504, "timeout_error"),
    ServiceError: (503, "server_error"),
    SchemaMismatch: (503, "server_error"),
    AccessDenied: (503, "server_error"),
    InvalidSettings: (503, "server_error"),
    MarcoError: (500, "server_error"),
}
"""Status and OpenAI's `type` of each error; of a class that is not here, those of its base."""
_RETRY_S = 5.0  # after a service failed
_CODES = {404: "not_found", 405: "method_not_allowed"}


def install(app: FastAPI) -> None:
    """Let the application answer errors like this."""
    app.add_exception_handler(MarcoError, _marco_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(Exception, _bug)


def refusal(error: MarcoError) -> JSONResponse:
    """An error of ours as an answer."""
    status, _ = _kind(error)
    retry_s = getattr(error, "retry_after_s", _RETRY_S if status == 503 else None)
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    if retry_s is not None:
        headers["Retry-After"] = str(math.ceil(retry_s))
    else:  # what OpenAI's client goes by: it tries 409 and all from 500 on again
        headers["X-Should-Retry"] = "false"
    return JSONResponse(error_body(error), status, headers)


def error_body(error: MarcoError) -> dict[str, Any]:
    """An error of ours in OpenAI's shape. Its code is its class: queue_full, job_not_found.

    Where the services are is the operator's to know: it is logged, not told.
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
    # A field's name is the caller's, and may hold what is no Unicode.
    return {
        "error": {n: v and v.encode(errors="backslashreplace").decode() for n, v in error.items()}
    }


def too_large() -> JSONResponse:
    """The answer to a body that is longer than its route takes."""
    message = f"the body is too large: only uploads may have more than {BODY_LIMIT:,} bytes"
    return JSONResponse(_body(message, "invalid_request_error", "body_too_large"), 413)


async def _marco_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, MarcoError)
    return refusal(error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, MarcoError):  # raised while the body was read
        return refusal(error.__cause__)
    message = str(error.detail)
    if error.status_code == 404:
        message = f"there is no {request.url.path}; /docs lists what there is"
    code = _CODES.get(error.status_code, "bad_request")
    body = _body(message, "invalid_request_error", code)
    return JSONResponse(body, error.status_code, error.headers)


async def _invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return refusal(InputError(f"the body is not valid JSON: {first['ctx']['error']}"))
    place = ".".join(str(part) for part in first["loc"][1:]) or "body"
    wrong = "must be a JSON object, sent with Content-Type: application/json"
    return refusal(InvalidJob(place, wrong if first["type"] == "dict_type" else first["msg"]))


async def _bug(request: Request, error: Exception) -> Response:
    # Starlette raises it again after this answer, and the server logs it with its traceback.
    body = _body("marco-search has a bug: its log has the traceback", "server_error", "bug")
    return JSONResponse(body, 500)
