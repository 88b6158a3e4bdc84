"""The pages. Each is rendered here in full; scripts only draw the tree and refresh.

A page that refreshes itself asks for its own address with the header X-Refresh: it gets 204
where it has to wait its turn (see shared).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar
from uuid import UUID

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from marco_search.audit.findings import JobReport
from marco_search.console import filters
from marco_search.console.access import Access
from marco_search.console.outline import outline
from marco_search.console.reader import Reader
from marco_search.console.rendering import page
from marco_search.console.report import html_file
from marco_search.console.shared import Shared
from marco_search.errors import JobNotFound
from marco_search.render.document import document
from marco_search.render.svg import svg
from marco_search.store.reads.job_record import JobRecord

T = TypeVar("T")
_TREE_FIELDS = ("nodes", "rollouts", "winning_path", "answers")


def page_routes(reader: Reader, shared: Shared, access: Access) -> APIRouter:
    """All that is shown to who is let in."""
    routes = APIRouter()

    def html(
        request: Request, name: str, key: Hashable, read: Callable[[], T], shown: Callable[[T], Any]
    ) -> Response:
        """The page made of what `read` gives, or 204 for a refresh that has to wait."""
        found = shared.get(key, read, refresh="x-refresh" in request.headers)
        if found is None:
            return Response(status_code=204)
        return HTMLResponse(page(name, **shown(found), can_leave=access.has_token))

    @routes.get("/")
    def start() -> Response:
        return RedirectResponse("/jobs", 303)

    @routes.get("/jobs")
    def jobs(request: Request) -> Response:
        wanted = filters.from_query(request.query_params)
        return html(
            request,
            "jobs.html",
            ("jobs", wanted),
            lambda: reader.jobs(wanted),
            lambda found: {
                "page": found,
                "wanted": wanted,
                "states": filters.STATES,
                "kinds": filters.KINDS,
                "doubts": filters.DOUBTS,
                "link": lambda **other: "/jobs" + filters.to_query(wanted, **other),
            },
        )

    @routes.get("/batches")
    def batches(request: Request) -> Response:
        values = {"title": "Batches", "one": "batch"}
        read = reader.batches
        return html(request, "totals.html", "batches", read, lambda t: values | {"totals": t})

    @routes.get("/tenants")
    def tenants(request: Request) -> Response:
        values = {"title": "Tenants", "one": "tenant"}
        read = reader.tenants
        return html(request, "totals.html", "tenants", read, lambda t: values | {"totals": t})

    def record(job_id: UUID, *, refresh: bool = False) -> JobRecord | None:
        return shared.get(("job", job_id), lambda: reader.record(job_id), refresh=refresh)

    def whole(job_id: UUID) -> JobRecord:
        found = record(job_id)
        assert found is not None, "only a refresh may have to wait"
        return found

    def verified(found: JobRecord) -> JobReport | None:
        """Only jobs that have ended are sealed."""
        job = found.job
        if not job.final:
            return None
        return shared.get(("verified", job.job_id), lambda: reader.verified(job.job_id))

    @routes.get("/jobs/{job}")
    def job(request: Request, job: str) -> Response:
        job_id = _job_id(job)
        read = lambda: reader.record(job_id)  # noqa: E731  # typed by `html`
        return html(
            request,
            "job.html",
            ("job", job_id),
            read,
            lambda found: {"record": found, "job": found.job, "verified": verified(found)},
        )

    @routes.get("/jobs/{job}/tree.json")
    def tree(request: Request, job: str) -> Response:
        found = record(_job_id(job), refresh="x-refresh" in request.headers)
        if found is None:
            return Response(status_code=204)
        data = document(found)
        return JSONResponse({name: data[name] for name in _TREE_FIELDS})

    @routes.get("/jobs/{job}/nodes/{node}.json")
    def node(job: str, node: str) -> Response:
        return JSONResponse(reader.node_tokens(_job_id(job), _node_id(node)))

    @routes.get("/jobs/{job}/outline")
    def as_list(job: str) -> Response:
        found = whole(_job_id(job))
        lines = outline(found.nodes, found.winning_path)
        values = {"job": found.job, "outline": lines, "can_leave": access.has_token}
        return HTMLResponse(page("outline.html", **values))

    @routes.get("/jobs/{job}/report.html")
    def report(job: str) -> Response:
        found = whole(_job_id(job))
        tokens, vocabulary = reader.all_tokens(found.job.job_id)
        html = html_file(found, tokens, vocabulary, verified(found))
        return _download(html, "text/html", found, "html")

    @routes.get("/jobs/{job}/tree.svg")
    def drawing(job: str) -> Response:
        found = whole(_job_id(job))
        text = svg(found.nodes, found.winning_path, found.job.subject)
        return _download(text, "image/svg+xml", found, "svg")

    return routes


def _job_id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise JobNotFound(f"{text!r} is no job's id") from None


def _node_id(text: str) -> int:
    """A node's number. What Postgres can't hold as an integer names no node."""
    if not (text.isascii() and text.isdecimal()) or len(text) > 10 or int(text) >= 2**31:
        raise JobNotFound(f"no node {text[:40]}")
    return int(text)


def _download(text: str, media_type: str, record: JobRecord, suffix: str) -> Response:
    name = f"marco-{record.job.job_id}.{suffix}"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    # A half surrogate can't come out of Postgres, but a page must never fail over one.
    return Response(text.encode("utf-8", "replace"), media_type=media_type, headers=headers)
