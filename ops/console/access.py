"""Who may look: the Host header, the token, and the headers that every answer carries.

On loopback there is no token unless one is set. A page of another site can't read the console
by pointing a name of its own at this machine (DNS rebinding): names must be known ones.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "marco_console"
LOGIN = "/login"
SESSION_S = 12 * 3600

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class Access:
    """The rules. `token` None: whoever reaches the console may look."""

    def __init__(self, token: str | None, names: Iterable[str] = ()) -> None:
        """`names`: host names by which the console is called, besides localhost."""
        self._token = token
        known = {"localhost", socket.gethostname(), *names}
        self._names = frozenset(name.lower().rstrip(".") for name in known)

    @property
    def has_token(self) -> bool:
        """Whether a token is asked for."""
        return self._token is not None

    def knows_host(self, header: str) -> bool:
        """Whether a Host header names this console. An address can't be rebound: any will do."""
        name = header.strip().lower()
        end = "]" if name.startswith("[") else ":"
        name = name.removeprefix("[").partition(end)[0]
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name.rstrip(".") in self._names
        return True

    def is_token(self, given: str) -> bool:
        """Whether this is the token, in a time that does not tell how much of it is right."""
        return self._token is not None and _same(given, self._token)

    @property
    def session(self) -> str:
        """What the cookie holds: proves the token without being it."""
        key = (self._token or "").encode()
        return hmac.new(key, b"marco-search console session", hashlib.sha256).hexdigest()

    def allows(self, headers: Headers) -> bool:
        """Whether a request carries the token, or the cookie that logging in gave."""
        if self._token is None:
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self.is_token(given.strip())
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and _same(cookie.value, self.session)


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())


class Guard:
    """ASGI middleware that applies the rules and adds the headers."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                # Scripts and styles are the same for everyone; pages hold what is private.
                headers["Cache-Control"] = "no-cache" if _is_static(path) else "no-store"
            await send(message)

        refused = self._refusal(path, scope.get("query_string", b""), Headers(scope=scope))
        await (refused or self._app)(scope, receive, send_with_headers)

    def _refusal(self, path: str, query: bytes, headers: Headers) -> Response | None:
        if not self._access.knows_host(headers.get("host", "")):
            return PlainTextResponse(
                "This console does not go by that name: --allow-host NAME adds one.\n", 400
            )
        if path == LOGIN or _is_static(path) or self._access.allows(headers):
            return None
        if "text/html" in headers.get("accept", ""):
            wanted = path + (f"?{query.decode('latin-1')}" if query else "")
            return RedirectResponse(f"{LOGIN}?next={quote(wanted, safe='')}", 303)
        return PlainTextResponse("A token is needed: Authorization: Bearer TOKEN\n", 401)


def _is_static(path: str) -> bool:
    return path.startswith("/static/")


def local_path(wanted: str) -> str:
    """Where to go after logging in: a path of this console, else its first page."""
    inside = wanted.startswith("/") and not wanted.startswith(("//", "/\\"))
    return wanted if inside and wanted.isprintable() and "\\" not in wanted else "/"
