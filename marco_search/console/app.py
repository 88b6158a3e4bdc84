"""The console as an ASGI application: its pages, and what an error looks like.

Each page is rendered here in full; scripts only draw the tree and refresh. A page that refreshes
itself asks for its own address with the header X-Refresh: it gets 204 where it has to wait its turn
(see Cache).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Annotated, Any, TypeVar
from urllib.parse import quote, urlencode
from uuid import UUID

from fastapi import APIRouter, FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import StringConstraints
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from marco_search.audit.findings import JobReport
from marco_search.console.access import HEALTH, LARGEST_FORM, Access, Guard, login_routes
from marco_search.console.reader import Cache, Reader
from marco_search.console.rendering import STATIC, csv_lines, html_file, page, tree_rows
from marco_search.errors import InputError, JobNotFound, MarcoError, QueryRefused
from marco_search.jobs.validation import at_most, explain
from marco_search.kinds import KINDS
from marco_search.render.document import cards, document
from marco_search.render.drawings import svg
from marco_search.render.layout import Layout
from marco_search.store.queue.states import JobState
from marco_search.store.reads.job_record import JobRecord
from marco_search.store.reads.queries import (
    COUNTED,
    LOW_QUANTILE,
    NARROW_SHARE,
    ORDERS,
    JobFilter,
)

T = TypeVar("T")
_TREE_FIELDS = ("nodes", "rollouts", "winning_path", "answers")
STATES = tuple(str(state) for state in JobState)
DOUBTS = {
    "low": f"lowest {LOW_QUANTILE:.0%} of the model's confidences",
    "narrow": f"less than {NARROW_SHARE:.0%} of the vote",
}
_FILTERS = tuple(field.name for field in fields(JobFilter))
_FIELDS = ("kind", "tenant", "batch", "doubt", "order")  # of the form, beside text and state
_LONGEST = 1200  # characters of a parameter's value: a model's name may be a path
NodeId = Annotated[int, Path(ge=0, lt=2**31)]
Start = Annotated[int, Query(ge=0, lt=10**9)]
Word = Annotated[
    str,
    StringConstraints(strip_whitespace=True),
    at_most(_LONGEST, empty=True),
    Query(),
]
_PAGE = 50  # lines of a page
_MOST_LINES = 100_000  # of a download
_TITLES = {400: "Bad request", 404: "Not found", 405: "Not allowed"}


def create_app(reader: Reader, access: Access, cache: Cache | None = None) -> ASGIApp:
    """The application. It only ever reads."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, max_body_size=LARGEST_FORM)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.include_router(login_routes(access))
    app.include_router(_page_routes(reader, cache or Cache(), access))
    for kind in (MarcoError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _refused)
    # Around all of it, so that the page of a bug has the headers, too.
    return Guard(app, access)


async def _refused(request: Request, error: Exception) -> Response:
    status, message = _described(error)
    if request.url.path.endswith(".json"):
        return JSONResponse({"error": {"message": message}}, status)
    title = _TITLES.get(status, "Internal error" if status == 500 else "Unavailable")
    return HTMLResponse(page("error.html", title=title, status=status, message=message), status)


def _described(error: Exception) -> tuple[int, str]:
    """The status and the sentence for an error."""
    match error:
        case JobNotFound():
            return 404, str(error)
        case MarcoError():
            return 400 if isinstance(error, InputError) else 503, str(error)
        case RequestValidationError() if error.errors()[0]["loc"][0] == "query":
            first = error.errors()[0]
            return 400, f"{first['loc'][-1]}: {explain(first)}"
        case RequestValidationError() | HTTPException(detail="Not Found"):
            return 404, "There is no such page."
        case HTTPException():
            return error.status_code, str(error.detail)
    # Starlette raises it again after this answer, and the server logs it with its traceback.
    return 500, "The console has a bug: its log has the traceback."


def _page_routes(reader: Reader, cache: Cache, access: Access) -> APIRouter:
    """The routes of all pages but the login."""
    routes = APIRouter()

    def html(
        request: Request, name: str, key: Hashable, read: Callable[[], T], **shown: Any
    ) -> Response:
        """The page made of what `read` gives, or 204 for a refresh that has to wait."""
        found = cache.get(key, read, refresh="x-refresh" in request.headers)
        if found is None:
            return Response(status_code=204)
        return HTMLResponse(page(name, found=found, **shown, can_leave=access.has_token))

    @routes.get("/")
    def start() -> Response:
        return RedirectResponse("/jobs", 303)

    @routes.get("/jobs")
    def jobs(request: Request) -> Response:
        wanted = _job_filter(request.query_params)
        set_fields = sum(getattr(wanted, name) != getattr(JobFilter(), name) for name in _FIELDS)
        values = {"wanted": wanted, "kinds": tuple(KINDS), "doubts": DOUBTS, "orders": ORDERS}
        values |= {"set_fields": set_fields, "counted": COUNTED}
        values["link"] = lambda path="/jobs", **other: path + _query(wanted, **other)
        return html(request, "jobs.html", ("jobs", wanted), lambda: reader.jobs(wanted), **values)

    @routes.get("/jobs.csv")
    def csv(request: Request) -> Response:
        wanted = _job_filter(request.query_params)
        headers = {"Content-Disposition": 'attachment; filename="marco-jobs.csv"'}
        lines = csv_lines(reader.all_jobs(wanted, _MOST_LINES))
        return StreamingResponse(lines, media_type="text/csv; charset=utf-8", headers=headers)

    @routes.get("/workers")
    def workers(request: Request) -> Response:
        return html(request, "workers.html", "workers", reader.workers)

    @routes.get("/metrics")
    def metrics() -> Response:
        return Response(reader.metrics(), media_type=CONTENT_TYPE_LATEST)

    @routes.get(HEALTH)
    def health() -> Response:
        try:
            cache.get("health", reader.answers)
        except MarcoError:
            return PlainTextResponse("The database can't be used: the pages say why.\n", 503)
        return PlainTextResponse("ok\n")

    def totals(title: str, one: str, read: Callable[[], Sequence[Any]]) -> None:
        @routes.get(f"/{title.lower()}", name=title)
        def sums(request: Request) -> Response:
            return html(request, "totals.html", one, read, title=title, one=one)

    @routes.get("/models")
    def models(request: Request, old: Word = "", new: Word = "", start: Start = 0) -> Response:
        return html(
            request, "models.html", ("models", old, new), lambda: reader.models(old, new),
            start=start, size=_PAGE,
        )  # fmt: skip

    @routes.get("/datasets")
    def data_sets(request: Request, start: Start = 0) -> Response:
        read = partial(reader.data_sets, offset=start, limit=_PAGE + 1)
        return html(request, "datasets.html", ("datasets", start), read, start=start, size=_PAGE)

    @routes.get("/datasets/{word}")
    def data_set(request: Request, word: str, after: Word = "", before: Word = "") -> Response:
        key = ("dataset", word, after, before)
        return html(
            request, "dataset.html", key, lambda: reader.samples(word, after, before or None)
        )

    totals("Batches", "batch", reader.batches)
    totals("Tenants", "tenant", reader.tenants)

    def record(job: UUID, *, refresh: bool = False) -> JobRecord | None:
        return cache.get(("job", job), lambda: reader.record(job), refresh=refresh)

    def whole(job: UUID) -> JobRecord:
        found = record(job)
        assert found is not None, "only a refresh may have to wait"
        return found

    def verified(found: JobRecord) -> JobReport | None:
        """The check of a job that has ended: the others are not sealed."""
        job_id = found.job.job_id
        read = lambda: reader.verified(job_id)  # noqa: E731  # typed by `get`
        return cache.get(("verified", job_id), read) if found.job.final else None

    @routes.get("/jobs/{job:uuid}")
    def job(request: Request, job: UUID) -> Response:
        found = record(job, refresh="x-refresh" in request.headers)
        if found is None:
            return Response(status_code=204)
        text = page(
            "job.html", record=found, job=found.job, verified=verified(found),
            used=reader.data_sets(job_id=found.job.job_id) if found.job.final else [],
            rows=tree_rows(found.nodes, found.winning_path), can_leave=access.has_token,
        )  # fmt: skip
        return HTMLResponse(text)

    @routes.get("/jobs/{job:uuid}/tree.json")
    def tree(request: Request, job: UUID) -> Response:
        found = record(job, refresh="x-refresh" in request.headers)
        if found is None:
            return Response(status_code=204)
        data = document(found) | {"nodes": cards(found)}
        return JSONResponse({name: data[name] for name in _TREE_FIELDS})

    @routes.get("/jobs/{job:uuid}/nodes/{node}.json")
    def node(job: UUID, node: NodeId) -> Response:
        return JSONResponse(reader.node_tokens(job, node))

    @routes.get("/jobs/{job:uuid}/report.html")
    def report(job: UUID) -> Response:
        found = whole(job)
        text = html_file(found, reader.tokens(found.job.job_id), verified(found))
        return _download(text, "text/html", found, "html")

    @routes.get("/jobs/{job:uuid}/tree.svg")
    def drawing(job: UUID) -> Response:
        found = whole(job)
        text = svg(Layout(found.nodes, found.winning_path), found.job.subject)
        return _download(text, "image/svg+xml", found, "svg")

    @routes.get("/jobs/{word}")
    @routes.get("/jobs/{word}/{rest:path}")
    def by_part(word: str, rest: str = "") -> Response:
        """A part of an id: to the job, or to the list of those that fit."""
        try:
            found = reader.matching(word)
        except InputError:
            raise JobNotFound(f"{word} is not a job's id, nor part of one") from None
        if str(found[0]) == word and rest:
            raise HTTPException(404)
        if len(found) > 1:
            return RedirectResponse("/jobs" + _query(JobFilter(text=word)), 303)
        return RedirectResponse(f"/jobs/{found[0]}" + (f"/{quote(rest)}" if rest else ""), 303)

    return routes


def _job_filter(query: Mapping[str, str]) -> JobFilter:
    """The filter of these parameters; empty ones do not count. Raises QueryRefused."""
    given: dict[str, Any] = {
        name: query[name].strip() for name in _FILTERS if query.get(name, "").strip()
    }
    for name, value in given.items():
        if len(value) > _LONGEST or "\x00" in value:
            raise QueryRefused(f"{name}: at most {_LONGEST} characters, none of them NUL")
    for name, known in (
        ("state", STATES),
        ("kind", tuple(KINDS)),
        ("doubt", tuple(DOUBTS)),
        ("order", tuple(ORDERS)),
    ):
        if given.get(name, known[0]) not in known:
            raise QueryRefused(f"{name}: must be one of {', '.join(known)}")
    for name in {"batch", "before", "after"} & given.keys():
        try:
            given[name] = UUID(given[name])
        except ValueError:
            raise QueryRefused(f"{name}: must be a whole id") from None
    return JobFilter(**given)


def _query(wanted: JobFilter, **other: object) -> str:
    """The query string of a filter with some fields replaced; "" for none at all."""
    values = {name: other.get(name, getattr(wanted, name)) for name in _FILTERS}
    given = {
        name: str(value) for name, value in values.items() if value != getattr(JobFilter(), name)
    }
    return f"?{urlencode(given)}" if given else ""


def _download(text: str, media_type: str, record: JobRecord, suffix: str) -> Response:
    name = f"marco-{record.job.job_id}.{suffix}"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    # A half surrogate can't come out of Postgres, but a page must never fail over one.
    return Response(text.encode("utf-8", "replace"), media_type=media_type, headers=headers)
