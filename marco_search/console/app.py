"""The console as an ASGI application, and what an error looks like."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from marco_search.console.access import Access, Guard, login_routes
from marco_search.console.pages import page_routes
from marco_search.console.reader import Cache, Reader
from marco_search.console.rendering import STATIC, page
from marco_search.errors import InputError, JobNotFound, MarcoError

_TITLES = {400: "Bad request", 404: "Not found", 405: "Not allowed"}


def create_app(reader: Reader, access: Access, cache: Cache | None = None) -> ASGIApp:
    """The application. It only ever reads."""
    app = FastAPI(title="marco-search console", docs_url=None, redoc_url=None, openapi_url=None)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.include_router(login_routes(access))
    app.include_router(page_routes(reader, cache or Cache(), access))
    app.add_exception_handler(MarcoError, _marco_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid_path)
    app.add_exception_handler(Exception, _bug)
    # Around all of it, so that the page of a bug has the headers, too.
    return Guard(app, access)


async def _marco_error(request: Request, error: Exception) -> Response:
    bad = 400 if isinstance(error, InputError) else 503
    return _error(request, 404 if isinstance(error, JobNotFound) else bad, str(error))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = "There is no such page." if error.detail == "Not Found" else str(error.detail)
    return _error(request, error.status_code, message)


async def _invalid_path(request: Request, error: Exception) -> Response:
    return _error(request, 404, "There is no such page.")


async def _bug(request: Request, error: Exception) -> Response:
    # Starlette raises it again after this answer, and the server logs it with its traceback.
    return _error(request, 500, "The console has a bug: its log has the traceback.")


def _error(request: Request, status: int, message: str) -> Response:
    if request.url.path.endswith(".json"):
        return JSONResponse({"error": {"message": message}}, status)
    title = _TITLES.get(status, "Internal error" if status == 500 else "Unavailable")
    return HTMLResponse(page("error.html", title=title, status=status, message=message), status)
