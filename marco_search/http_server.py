"""The HTTP server of the console and the API: one process.

Connections that send half a request, or read nothing, must not keep others out: each has a
deadline, and if there are too many the one with the earliest deadline is closed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any
from uuid import uuid4

import uvicorn
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from marco_search import logs, tracing
from marco_search.errors import AddressTaken
from marco_search.metrics import REQUEST, REQUESTS, record

log = logging.getLogger(__name__)
LOOPBACK = ("127.0.0.1", "::1", "localhost")
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_STOPPING = (signal.SIGINT, signal.SIGTERM)
HEAD_S = 5.0  # for a request's head to arrive
ANSWER_S = 120.0
MOST_CONNECTIONS, _BACKLOG = 512, 100


def serve(
    app: ASGIApp,
    host: str,
    port: int,
    ready: Callable[[str], None],
    *,
    answer_s: float = ANSWER_S,
    stopping: asyncio.Event | None = None,
) -> None:
    """Answer until SIGINT or SIGTERM. `ready` gets the address; port 0 takes a free one.

    A request has `answer_s` seconds for its response to be sent and read. `stopping` is set
    when the server is to stop: requests that wait then have five seconds to end.
    Raises AddressTaken.
    """
    connection: Any = partial(_Connection, answer_s=answer_s)
    stopping = stopping or asyncio.Event()
    with closing(bound(host, port)) as listening:
        ready(f"http://{_reachable(host)}:{listening.getsockname()[1]}/")
        config = uvicorn.Config(
            _Observed(app, stopping),
            log_config=None,  # theirs go where ours go
            http=connection,
            backlog=_BACKLOG,
            # Not warnings: a client decides how many there are.
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=5,
        )
        with _signals_end_quietly():
            _Server(config, stopping).run(sockets=[listening])


class _Server(uvicorn.Server):
    """uvicorn's server, which tells waiting requests that it is stopping."""

    def __init__(self, config: uvicorn.Config, stopping: asyncio.Event) -> None:
        super().__init__(config)
        self._stopping = stopping

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._stopping.set()
        await super().shutdown(sockets)


class _Observed:
    """ASGI middleware: counts requests, puts each into the trace that its client names, and gives
    it an id, which its answer and what is logged of it have. HEAD is served as GET: the server
    omits the body.
    """

    def __init__(self, app: ASGIApp, stopping: asyncio.Event) -> None:
        self._app, self._stopping = app, stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, request_id = time.monotonic(), 500, f"req_{uuid4().hex}"
        given, method = Headers(scope=scope).get("traceparent"), scope["method"]
        scope = {**scope, "method": "GET" if method == "HEAD" else method}

        async def noting(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        with (
            tracing.within(given) as trace_id,
            logs.about(trace_id=trace_id, request_id=request_id),
        ):
            try:
                await self._app(scope, receive, noting)
            except asyncio.CancelledError:
                if not self._stopping.is_set():  # then it had its time to end
                    raise
            except Exception:  # answered with 500 already; uvicorn would log it without the id
                log.exception("%s %s, %s, failed", method, scope["path"], request_id)
            finally:
                # Not the client's text: the number of labels would be unbounded.
                route = getattr(scope.get("route"), "path", "(none)")
                known = method if method in _METHODS else "(other)"
                record(REQUESTS, 1, known, route, str(status))
                record(REQUEST, time.monotonic() - began, route)


def _reachable(host: str) -> str:
    """`host` as a browser on this machine can reach it."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "[::1]"
    return host if address.version == 4 else f"[{host}]"


def _most_connections() -> int:
    """The connection limit: leaves file descriptors for the database and for new connections."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = 64 + 2 * _BACKLOG
    return MOST_CONNECTIONS if files < 0 else max(8, min(MOST_CONNECTIONS, files - spare))


class _Connection(H11Protocol):
    """uvicorn's connection with a deadline for each request, and a limit on how many there are."""

    _deadline: asyncio.TimerHandle | None = None
    _seconds = 0.0

    def __init__(self, *given: Any, answer_s: float, **named: Any) -> None:
        super().__init__(*given, **named)
        self._answer_s = answer_s

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._follow()
        waiting = [c for c in self.connections if isinstance(c, _Connection) and c._waits]
        if len(self.connections) > _most_connections() and waiting:
            min(waiting, key=lambda c: c._deadline.when() if c._deadline else 0.0)._abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._follow()

    def on_response_complete(self) -> None:
        self._cancel()
        super().on_response_complete()
        if not self._waits:  # the next request had already arrived
            self._follow()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel()
        super().connection_lost(exc)

    @property
    def _waits(self) -> bool:
        """Whether it has no request in progress."""
        return self.cycle is None or self.cycle.response_complete

    def _follow(self) -> None:
        """Start the deadline of its current activity, unless it is running."""
        seconds = HEAD_S if self._waits else self._answer_s
        if self._deadline is None or seconds != self._seconds:
            self._cancel()
            self._seconds = seconds
            self._deadline = self.loop.call_later(seconds, self._abort)

    def _cancel(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _abort(self) -> None:
        # Not close(), which waits until what is buffered has been read.
        self.transport.abort()
        self.connections.discard(self)


@contextmanager
def _signals_end_quietly() -> Iterator[None]:
    """uvicorn raises the signal that stopped it once more, which would kill this process before
    it has stopped the services that it started."""
    before = {number: signal.signal(number, lambda *_: None) for number in _STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens at this address: connections wait until they are answered.

    Raises AddressTaken.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = str(error).partition(" (while ")[0]  # the address is named already
        raise AddressTaken(f"can't listen at {host}, port {port}: {reason}; try --port 0") from None
    # asyncio sets it for sockets of protocol TCP only, and these have 0. Without it the end of an
    # answer waits 40 ms for the client's acknowledgement of its beginning.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening
