"""Access to the console: the Host header, the token, sessions, and headers of all responses.

On loopback there is no token unless one is set. Host names must be known, so that no other site
can read the console by pointing its own name at this machine (DNS rebinding).
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Annotated, Generic, TypeVar
from urllib.parse import quote

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from marco_search.console.rendering import page

LOGIN, HEALTH = "/login", "/healthz"
SESSION_S = 12 * 3600
WRONG_TOKENS, WINDOW_S = 10, 60.0
"""This many wrong tokens within a window lock a client's address out for the rest of it."""
LARGEST_FORM = 2**16  # bytes

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}

V = TypeVar("V")


class Expiring(Generic[V]):
    """Values that expire after a time; beyond `most` values the oldest go first."""

    def __init__(self, lifetime_s: float, most: int, clock: Callable[[], float]) -> None:
        self._lifetime_s, self._most, self._clock = lifetime_s, most, clock
        self._items: OrderedDict[str, tuple[float, V]] = OrderedDict()

    def get(self, key: str) -> V | None:
        """The value; None if there is none or it has expired."""
        ends_at, value = self._items.get(key, (float("-inf"), None))
        return value if self._clock() < ends_at else None

    def put(self, key: str, value: V) -> V:
        """Keep a value from now on."""
        self.drop(key)
        self._items[key] = self._clock() + self._lifetime_s, value
        if len(self._items) > self._most:
            self._items.popitem(last=False)
        return value

    def drop(self, key: str) -> None:
        """Forget a value, if there is one."""
        self._items.pop(key, None)


class Access:
    """The rules, and who has logged in. In memory: a restart ends all sessions."""

    def __init__(
        self,
        token: str | None,
        names: Iterable[str] = (),
        *,
        session_s: float = SESSION_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`token` None lets everybody in. `names`: host names of the console besides localhost."""
        self._token, self.has_token, self.session_s = token, token is not None, session_s
        self._sessions = Expiring[bool](session_s, 1000, clock)
        self._wrong = Expiring[list[bool]](WINDOW_S, 10_000, clock)
        known = {"localhost", socket.gethostname(), *names}
        self._names = frozenset(name.lower().rstrip(".") for name in known)

    def knows_host(self, header: str) -> bool:
        """Whether a Host header names this console. Any IP address is fine: it can't be rebound."""
        name = header.strip().lower()
        end = "]" if name.startswith("[") else ":"
        name = name.removeprefix("[").partition(end)[0]
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name.rstrip(".") in self._names
        return True

    @property
    def cookie(self) -> str:
        """The cookie's name, which depends on the token: a browser sends a cookie to every port
        of a host, and another console there must not overwrite it."""
        return "marco_console_" + hashlib.sha256((self._token or "").encode()).hexdigest()[:8]

    def blocks(self, client: str) -> bool:
        """Whether this client address has sent too many wrong tokens."""
        return len(self._wrong.get(client) or ()) >= WRONG_TOKENS

    def is_token(self, given: str, client: str) -> bool:
        """Whether this is the token, compared in constant time; never for a blocked client."""
        if self._token is None or self.blocks(client):
            return False
        right = hmac.compare_digest(given.encode("utf-8", "replace"), self._token.encode())
        if not right:
            (self._wrong.get(client) or self._wrong.put(client, [])).append(True)
        return right

    def begin_session(self) -> str:
        """The secret of a new session, which only the browser's cookie holds."""
        secret = secrets.token_urlsafe(32)
        self._sessions.put(secret, True)
        return secret

    def end_session(self, headers: Headers) -> None:
        """Forget the session of these headers, if there is one."""
        self._sessions.drop(self._session(headers))

    def _session(self, headers: Headers) -> str:
        # Other programs on this host set cookies as well, and not all of them as RFC 6265 asks.
        return cookie_parser(headers.get("cookie", "")).get(self.cookie, "")

    def allows(self, headers: Headers, client: str) -> bool:
        """Whether a request carries the token, or the cookie that logging in gave."""
        if self._token is None or self._sessions.get(self._session(headers)):
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and self.is_token(given.strip(), client)


def _client(scope: Scope) -> str:
    """The address that a request came from; "" where there is none."""
    return (scope.get("client") or ("",))[0]


class Guard:
    """ASGI middleware that applies the rules and adds the headers."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        static = _is_static(scope["path"])

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                # Scripts and styles are the same for everyone; pages hold what is private.
                caching = {"Cache-Control": "no-cache" if static else "no-store"}
                MutableHeaders(scope=message).update(HEADERS | caching)
            await send(message)

        await (self._refusal(scope) or self._app)(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        headers, client, path = Headers(scope=scope), _client(scope), scope["path"]
        if not self._access.knows_host(headers.get("host", "")):
            return PlainTextResponse("Host not allowed: --allow-host NAME adds one.\n", 400)
        if path in (LOGIN, HEALTH) or _is_static(path) or self._access.allows(headers, client):
            return None
        if "text/html" in headers.get("accept", ""):
            query = scope.get("query_string", b"").decode("latin-1")
            wanted = path + (f"?{query}" if query else "")
            return RedirectResponse(f"{LOGIN}?next={quote(wanted, safe='')}", 303)
        if self._access.blocks(client):
            return PlainTextResponse("Too many wrong tokens: wait a minute.\n", 429)
        return PlainTextResponse("Token required: Authorization: Bearer TOKEN\n", 401)


def _is_static(path: str) -> bool:
    return path.startswith("/static/")


def login_routes(access: Access) -> APIRouter:
    """GET and POST /login, POST /logout."""
    routes = APIRouter()

    @routes.get(LOGIN)
    def form(next: str = "/") -> Response:
        return _form(next)

    @routes.post(LOGIN)
    async def log_in(
        request: Request,
        token: Annotated[str, Form()] = "",
        wanted: Annotated[str, Form(alias="next")] = "/",
    ) -> Response:
        client = _client(request.scope)
        if not access.is_token(token.strip(), client):
            return _form(wanted, wrong=access.has_token, blocked=access.blocks(client))
        answer = RedirectResponse(local_path(wanted), 303)
        answer.set_cookie(
            access.cookie,
            access.begin_session(),
            max_age=int(access.session_s),
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer

    @routes.post("/logout")
    async def log_out(request: Request) -> Response:
        access.end_session(request.headers)
        answer = RedirectResponse(LOGIN, 303)
        answer.delete_cookie(access.cookie, httponly=True, samesite="strict")
        return answer

    return routes


def _form(wanted: str, *, wrong: bool = False, blocked: bool = False) -> Response:
    values = {"next": local_path(wanted), "wrong": wrong, "blocked": blocked}
    status = 429 if blocked else 403 if wrong else 200
    return HTMLResponse(page("login.html", **values), status)


def local_path(wanted: str) -> str:
    """The page after logging in: a path of this console, else its first page."""
    inside = wanted.startswith("/") and not wanted.startswith(("//", "/\\"))
    return wanted if inside and wanted.isprintable() and "\\" not in wanted else "/"
