"""Logging in: the token in a form, once, against a cookie that scripts can't read."""

from __future__ import annotations

import asyncio
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.requests import ClientDisconnect

from marco_search.console.access import LOGIN, Access, client_of, local_path
from marco_search.console.rendering import page

_LARGEST_FORM = 4096  # bytes
_FORM_S = 10.0  # for all of it to arrive


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
        client = client_of(request.scope)
        if not access.is_token(token, client):
            blocked = access.throttle.blocks(client)
            return _form(wanted, wrong=access.has_token, blocked=blocked)
        answer = RedirectResponse(local_path(wanted), 303)
        answer.set_cookie(
            access.cookie,
            access.sessions.begin(),
            max_age=int(access.sessions.lifetime_s),
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer

    @routes.post("/logout")
    async def log_out(request: Request) -> Response:
        access.sessions.end(access.session_of(request.headers))
        answer = RedirectResponse(LOGIN, 303)
        answer.delete_cookie(access.cookie, httponly=True, samesite="strict")
        return answer

    return routes


async def _body(request: Request) -> bytes:
    body = b""
    try:
        async with asyncio.timeout(_FORM_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > _LARGEST_FORM:
                    return b""
    except (TimeoutError, ClientDisconnect):  # nobody is left to answer, and it is no bug
        return b""
    return body


def _form(wanted: str, *, wrong: bool, blocked: bool = False) -> Response:
    values = {"next": local_path(wanted), "wrong": wrong, "blocked": blocked, "can_leave": False}
    status = 429 if blocked else 403 if wrong else 200
    return HTMLResponse(page("login.html", **values), status)
