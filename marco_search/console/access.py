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
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from marco_search.console.sessions import Sessions, Throttle

LOGIN = "/login"

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

    def __init__(
        self,
        token: str | None,
        names: Iterable[str] = (),
        *,
        sessions: Sessions | None = None,
        throttle: Throttle | None = None,
    ) -> None:
        """`names`: host names by which the console is called, besides localhost."""
        self._token = token
        self.sessions = sessions or Sessions()
        self.throttle = throttle or Throttle()
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

    @property
    def cookie(self) -> str:
        """The cookie's name. Of this token: a browser sends it to every port of a host, and
        another console there must not overwrite it."""
        return "marco_console_" + hashlib.sha256((self._token or "").encode()).hexdigest()[:8]

    def is_token(self, given: str, client: str) -> bool:
        """Whether this is the token, in a time that does not tell how much of it is right.

        False, too, for a client address that gave too many wrong ones (`throttle`).
        """
        if self._token is None or self.throttle.blocks(client):
            return False
        right = hmac.compare_digest(given.encode("utf-8", "replace"), self._token.encode())
        if not right:
            self.throttle.count_wrong(client)
        return right

    def session_of(self, headers: Headers) -> str:
        """The session's secret that a request's cookie holds, or ""."""
        # Other programs on this host set cookies as well, and not all of them as RFC 6265 asks.
        return cookie_parser(headers.get("cookie", "")).get(self.cookie, "")

    def allows(self, headers: Headers, client: str) -> bool:
        """Whether a request carries the token, or the cookie that logging in gave."""
        if self._token is None or self.session_of(headers) in self.sessions:
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and self.is_token(given.strip(), client)


def client_of(scope: Scope) -> str:
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
        path: str = scope["path"]
        if scope["method"] == "HEAD":
            # Every page answers it: as GET, whose body the server leaves out.
            scope = {**scope, "method": "GET"}

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                # Scripts and styles are the same for everyone; pages hold what is private.
                headers["Cache-Control"] = "no-cache" if _is_static(path) else "no-store"
            await send(message)

        refused = self._refusal(path, scope)
        await (refused or self._app)(scope, receive, send_with_headers)

    def _refusal(self, path: str, scope: Scope) -> Response | None:
        headers, client = Headers(scope=scope), client_of(scope)
        if not self._access.knows_host(headers.get("host", "")):
            return PlainTextResponse("Host not allowed: --allow-host NAME adds one.\n", 400)
        if path == LOGIN or _is_static(path) or self._access.allows(headers, client):
            return None
        if "text/html" in headers.get("accept", ""):
            query = scope.get("query_string", b"").decode("latin-1")
            wanted = path + (f"?{query}" if query else "")
            return RedirectResponse(f"{LOGIN}?next={quote(wanted, safe='')}", 303)
        if self._access.throttle.blocks(client):
            return PlainTextResponse("Too many wrong tokens: wait a minute.\n", 429)
        return PlainTextResponse("A token is needed: Authorization: Bearer TOKEN\n", 401)


def _is_static(path: str) -> bool:
    return path.startswith("/static/")


def local_path(wanted: str) -> str:
    """Where to go after logging in: a path of this console, else its first page."""
    inside = wanted.startswith("/") and not wanted.startswith(("//", "/\\"))
    return wanted if inside and wanted.isprintable() and "\\" not in wanted else "/"
