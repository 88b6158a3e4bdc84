"""Logging in: the token in a form, once, against a cookie that scripts can't read."""

from __future__ import annotations

from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from ops.console.access import COOKIE, LOGIN, SESSION_S, Access, local_path
from ops.console.rendering import page

_LARGEST_FORM = 4096  # bytes


def login_routes(access: Access) -> APIRouter:
    """GET and POST /login, POST /logout."""
    routes = APIRouter()

    @routes.get(LOGIN)
    def form(next: str = "/") -> Response:
        return _form(next, wrong=False)

    @routes.post(LOGIN)
    async def log_in(request: Request) -> Response:
        fields = parse_qs((await _body(request)).decode("utf-8", "replace"))
        token = fields.get("token", [""])[0].strip()
        wanted = fields.get("next", ["/"])[0]
        if not access.is_token(token):
            return _form(wanted, wrong=access.has_token)
        answer = RedirectResponse(local_path(wanted), 303)
        answer.set_cookie(
            COOKIE,
            access.session,
            max_age=SESSION_S,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer

    @routes.post("/logout")
    def log_out() -> Response:
        answer = RedirectResponse(LOGIN, 303)
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer

    return routes


async def _body(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LARGEST_FORM:
            return b""
    return body


def _form(wanted: str, *, wrong: bool) -> Response:
    html = page("login.html", next=local_path(wanted), wrong=wrong, can_leave=False)
    return HTMLResponse(html, 403 if wrong else 200)
