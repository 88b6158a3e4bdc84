"""Kept HTTP connections to one server, each request bounded in time.

Built on http.client because a request must be cut short from another thread, and at its deadline.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from marco_search.deadlines import Call, connected, port_of, watch_peer
from marco_search.errors import BranchFailed, InvalidSettings
from marco_search.runtime.base import quoting
from marco_search.runtime.servers.calls import (
    Failure,
    cut_short,
    details,
    reason,
    refused,
    unavailable,
)
from marco_search.settings import Settings
from marco_search.tracing import REQUESTS

LARGEST_ANSWER = 2**20  # bytes, where nothing better is known
_LARGEST_ERROR = 2**16  # bytes that are read of it
# A server that takes a request and falls silent is asked on another connection, this often and
# for so long, twice, whether it is there.
_ASK_EVERY_S = 4.0


def api_key_of(settings: Settings) -> str | None:
    """The servers' key. Raises InvalidSettings for one that no header can hold."""
    if settings.runtime_api_key is None:
        return None
    key = settings.runtime_api_key.get_secret_value().strip()  # a mounted secret ends in a newline
    if not (key.isascii() and key.isprintable()):
        # Checked here: the HTTP client's message would repeat the key.
        raise InvalidSettings("MARCO_RUNTIME_API_KEY: has characters that no header can hold")
    return key or None


def _tls(settings: Settings) -> ssl.SSLContext:
    ca = settings.runtime_ca
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise InvalidSettings(f"MARCO_RUNTIME_CA: {ca}: {error}") from None
    if not settings.runtime_verify_tls:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


@dataclass(frozen=True, slots=True)
class _Request:
    path: str
    data: bytes | None
    call: Call
    most: int
    accept: Callable[[dict[str, Any]], object] | None


class Connections:
    """Requests to `url` (http or https, without a user or password). They raise Failure.

    A connection leads to one process for as long as it lasts. `check` is called before a POST
    that needs a new one, because the server may be another one now, and raises Failure if so.
    `liveness` is a path that a server answers at once, if only to say that it has no such page.
    """

    def __init__(
        self, url: str, settings: Settings, check: Callable[[Call], object], liveness: str
    ) -> None:
        parts = urlsplit(url)
        self._url = url
        self._host = parts.hostname or ""
        self._port = port_of(parts)
        self._path = parts.path.rstrip("/")
        self._connect_s = settings.runtime_connect_s
        # Longest silence once an answer has begun. Before it begins the call's deadline holds:
        # the server answers when a branch is complete.
        self._stall_s = settings.runtime_stall_s
        self._tls = _tls(settings) if parts.scheme == "https" else None
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        key = api_key_of(settings)
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self.quoted = quoting(key)
        self._check = check
        self._liveness = liveness
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []
        self._probing = threading.Lock()
        self._probed_at = 0.0  # whether the server is there
        self._there = True

    def request(
        self,
        path: str,
        call: Call,
        body: Mapping[str, Any] | None = None,
        most: int = LARGEST_ANSWER,
        accept: Callable[[dict[str, Any]], object] | None = None,
    ) -> dict[str, Any]:
        """The JSON object at `path`, or that is answered to `body`, of at most `most` bytes.

        `accept` raises Failure for an answer after which the connection is not to be used.
        """
        data = None if body is None else json.dumps(body).encode()
        wanted = _Request(path, data, call, most, accept)
        while (connection := self._take_idle()) is not None:
            # One that has gone stale is not the server's fault: take another.
            try:
                return self._exchange(connection, wanted)
            except ConnectionError as error:
                if body is not None and "rid" in body:
                    # With another id: the server may have the request, if it was not its end.
                    failure = self._failure(call, "broke off its answer", error)
                    failure.stale = True
                    raise failure from None
        if body is not None:
            self._check(call)
            connection = self._take_idle()
        try:
            connection = connection or self._connect(call)
        except (OSError, http.client.HTTPException) as error:
            raise self._failure(call, "can't be reached", error, unreachable=True) from None
        try:
            return self._exchange(connection, wanted)
        except ConnectionError as error:
            raise self._failure(call, "broke off its answer", error) from None

    def close(self) -> None:
        """Close the connections that are not in use."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _exchange(self, connection: http.client.HTTPConnection, wanted: _Request) -> dict[str, Any]:
        """Raises ConnectionError too, if the server has closed the connection."""
        with contextlib.ExitStack() as unless_kept:
            unless_kept.callback(connection.close)
            try:
                answered = self._send(connection, wanted)
            except (OSError, http.client.HTTPException, ValueError) as error:
                if isinstance(error, ConnectionError) and not wanted.call.over:
                    raise
                raise self._failure(wanted.call, "broke off its answer", error) from None
            if wanted.accept is not None:
                wanted.accept(self._read(wanted.path, *answered))
            if connection.sock is not None:  # else the server asked to close it
                unless_kept.pop_all()
                with self._lock:
                    self._idle.append(connection)
        return self._read(wanted.path, *answered)

    def _read(
        self, path: str, status: int, headers: http.client.HTTPMessage, data: bytes
    ) -> dict[str, Any]:
        if status != 200:
            why = self.quoted(details(data))
            raise refused(self._url + path, status, headers["Retry-After"], why)
        try:
            answer = json.loads(data, object_pairs_hook=_object) if data else {}
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise unavailable(f"{self._url}{path}: the answer is not a JSON object")
        return answer

    def _failure(
        self, call: Call, what: str, error: Exception, *, unreachable: bool = False
    ) -> Failure:
        """If we ended the call ourselves, that is what happened, whatever it looked like."""
        if call.over:
            return cut_short(call)
        why = self.quoted(reason(error))
        return unavailable(f"{self._url} {what}: {why}", unreachable=unreachable)

    def _send(
        self, connection: http.client.HTTPConnection, wanted: _Request
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        call, most = wanted.call, wanted.most
        sock = connection.sock  # the connection forgets it when the server will close

        with call.using(sock):
            sock.settimeout(call.timeout_s)
            method = "GET" if wanted.data is None else "POST"
            headers = self._headers | ({"traceparent": trace} if (trace := REQUESTS.get()) else {})
            connection.request(method, self._path + wanted.path, wanted.data, headers)
            self._await_answer(sock, call)
            with connection.getresponse() as response:
                sock.settimeout(self._stall_s)
                if response.status != 200:
                    most = _LARGEST_ERROR
                elif (response.length or 0) > most:
                    raise self._too_large(wanted)
                sized = response.chunked or response.length is not None
                found = response.read(most + 1)
                if len(found) > most:
                    if response.status == 200:
                        raise self._too_large(wanted)
                    connection.close()
                elif response.length:  # `read` does not say that bytes are missing
                    raise http.client.IncompleteRead(b"", response.length)
                elif not sized and (call.over or not found):  # nor that the headers were cut
                    raise http.client.IncompleteRead(b"")
                return response.status, response.headers, found

    def _too_large(self, wanted: _Request) -> Failure:
        size = f"{wanted.most >> 10:,} KiB, all that was asked for"
        message = f"{self._url}{wanted.path}: the answer is larger than {size}"
        return Failure(kind=BranchFailed, message=message)

    def _await_answer(self, sock: socket.socket, call: Call) -> None:
        """Wait for the first byte, which comes when a branch is complete.

        Raises TimeoutError if the server is gone: it answers nothing on another connection
        either. Not with TLS, which has bytes of its own to read; there the kernel's questions
        (`watch_peer`) must do.
        """
        if isinstance(sock, ssl.SSLSocket):
            return
        while not call.over and not _readable(sock, min(_ASK_EVERY_S, max(call.left_s, 0.0))):
            if call.left_s > 0 and not self._is_there():
                raise TimeoutError

    def _is_there(self) -> bool:
        """Whether the server answers anything at all; asked once for all that wait."""
        with self._probing:
            if time.monotonic() - self._probed_at > _ASK_EVERY_S / 2:
                self._there = any(self._answers() for _ in range(2))
                self._probed_at = time.monotonic()
            return self._there

    def _answers(self) -> bool:
        call = Call(time.monotonic() + _ASK_EVERY_S)
        try:
            connection = self._connect(call)
            with contextlib.closing(connection), call.using(connection.sock):
                connection.request("GET", self._path + self._liveness, headers=self._headers)
                return connection.getresponse().status > 0
        except (http.client.HTTPException, ConnectionResetError):
            return not call.over  # else it was us who broke it off
        except OSError:
            return False

    def _connect(self, call: Call) -> http.client.HTTPConnection:
        made = http.client.HTTPConnection if self._tls is None else http.client.HTTPSConnection
        connection = made(self._host, self._port)
        within = Call(min(call.deadline, time.monotonic() + self._connect_s))
        connection.sock = connected(self._host, self._port, within, self._tls)
        watch_peer(connection.sock)
        return connection

    def _take_idle(self) -> http.client.HTTPConnection | None:
        """A kept connection that the server has not closed."""
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if connection.sock is not None and not _readable(connection.sock):
                return connection
            connection.close()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name twice in an object")
    return found


def _readable(sock: socket.socket, within_s: float = 0.0) -> bool:
    """True if something came: on an idle connection its end, as a rule."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(within_s * 1000))
