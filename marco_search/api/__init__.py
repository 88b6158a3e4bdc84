"""The HTTP API as an ASGI application: chat completions in OpenAI's shape, and jobs in ours."""

from __future__ import annotations

from fastapi import Depends, FastAPI, Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader
from starlette.types import ASGIApp

from marco_search import __version__
from marco_search.api import batch_routes, chat_completions, job_routes, responses
from marco_search.api.access import BEARER, Guard, Service


def create_app(service: Service) -> ASGIApp:
    """The application."""
    app = FastAPI(
        title="marco-search", version=__version__, docs_url=None, redoc_url=None,
        max_body_size=responses.BODY_LIMIT,
        exception_handlers=dict.fromkeys(responses.HANDLED, responses.answer),
    )  # fmt: skip

    @app.get(
        "/healthz", summary="Whether the database is reachable; needs no key", tags=["service"]
    )
    def health() -> dict[str, str]:
        with service.database.transaction() as conn:
            conn.execute("SELECT 1")
        return {"status": "ok"}

    @app.get("/docs", include_in_schema=False)
    def docs(request: Request) -> HTMLResponse:
        # FastAPI's own page loads scripts from another host.
        page = Environment(loader=PackageLoader("marco_search.api"), autoescape=True)
        address = str(request.base_url).rstrip("/")
        return HTMLResponse(page.get_template("docs.html").render(app.openapi(), address=address))

    for room in (chat_completions, job_routes, batch_routes):
        app.include_router(room.router, dependencies=[Depends(BEARER)])
    return Guard(app, service)
