"""Kept HTTP connections to one server, each request bounded in time.

Built on http.client because a request must be cut short from another thread, and because the
usual libraries count their read timeout again with every byte.
"""

from __future__ import annotations

import http.client
import json
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from marco_search.errors import BranchFailed, InvalidSettings
from marco_search.runtime.base import quoting
from marco_search.runtime.sglang import failures
from marco_search.runtime.sglang.calls import Call
from marco_search.runtime.sglang.failures import Failure
from marco_search.settings import Settings

LARGEST_ANSWER = 2**20  # bytes, where nothing better is known
_LARGEST_ERROR = 2**16  # bytes that are read of it
# A server that takes a request and falls silent is asked on another connection, this often and
# for so long, twice, whether it is there.
_ASK_EVERY_S = 4.0
# Seconds and counts; TCP_USER_TIMEOUT, for packets that are not acknowledged, in milliseconds.
_KEEPALIVE = {
    "TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 8000,
}  # fmt: skip
_CHUNK = 2**16  # bytes

_Answer = tuple[int, http.client.HTTPMessage, bytes]


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


class Connections:
    """A pool of connections to `url` (http or https, without a user or password)."""

    def __init__(
        self,
        url: str,
        settings: Settings,
        check: Callable[[Call], Failure | None] = lambda call: None,
    ) -> None:
        """`check` is called before a POST when the server has closed kept connections: it may
        be another one now. A failure that it returns is the answer.
        """
        parts = urlsplit(url)
        self._url = url
        self._host, self._port = parts.hostname or "", parts.port
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
        self._quoted = quoting(key)
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []
        self._check = check
        self._checking = threading.Lock()
        self._closures = 0  # connections that the server has closed
        self._checked = 0  # of these, how many before it was last checked
        self._probing = threading.Lock()
        self._probed_at = 0.0  # whether the server is there
        self._there = True

    def request(
        self,
        path: str,
        call: Call,
        body: Mapping[str, Any] | None = None,
        most: int = LARGEST_ANSWER,
    ) -> dict[str, Any] | Failure:
        """The JSON object at `path`, or what is answered to `body`; `most` bytes at most."""
        found = self._send(path, None if body is None else json.dumps(body).encode(), call, most)
        if isinstance(found, Failure):
            return found
        status, headers, data = found
        if status != 200:
            details = self._quoted(failures.details(data))
            return failures.refused(self._url + path, status, headers["Retry-After"], details)
        try:
            answer = json.loads(data, object_pairs_hook=_object) if data else {}
        except (ValueError, RecursionError):
            answer = None
        if isinstance(answer, dict):
            return answer
        return failures.unavailable(f"{self._url}{path}: the answer is not a JSON object")

    def close(self) -> None:
        """Close the connections that are not in use."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _send(self, path: str, body: bytes | None, call: Call, most: int) -> _Answer | Failure:
        while not call.over:
            connection = self._take_idle()
            kept = connection is not None
            changed = None if body is None else self._check_changed(call)
            if changed is not None:
                if connection is not None:
                    connection.close()
                return changed
            try:
                connection = connection or self._connect(call)
            except (OSError, http.client.HTTPException) as error:
                return self._failed(call, "can't be reached", error, unreachable=True)
            try:
                answer = self._exchange(connection, path, body, call, most)
            except _TooLargeError:
                connection.close()
                size = f"{most >> 10:,} KiB, all that was asked for"
                message = f"{self._url}{path}: the answer is larger than {size}"
                return Failure(kind=BranchFailed, message=message)
            except (OSError, http.client.HTTPException, ValueError) as error:
                connection.close()
                if not call.over:
                    self._note_closure()
                    if kept and isinstance(error, ConnectionError):
                        continue  # it had gone stale: not the server's fault, take another
                return self._failed(call, "broke off its answer", error)
            if connection.sock is not None:  # else the server asked to close it
                with self._lock:
                    self._idle.append(connection)
            return answer
        return call.cut_short()

    def _failed(
        self, call: Call, what: str, error: Exception, *, unreachable: bool = False
    ) -> Failure:
        """If we ended the call ourselves, that is what happened, whatever it looked like."""
        if call.over:
            return call.cut_short()
        why = self._quoted(failures.reason(error))
        return failures.unavailable(f"{self._url} {what}: {why}", unreachable=unreachable)

    def _check_changed(self, call: Call) -> Failure | None:
        """Call `check` if connections were closed since the last time; others wait for it."""
        if self._closures == self._checked:
            return None
        if not self._checking.acquire(timeout=max(call.left_s, 0.0)):
            return call.cut_short()
        try:
            closures = self._closures
            changed = self._check(call) if closures != self._checked else None
            if changed is None:
                self._checked = closures
            return changed
        finally:
            self._checking.release()

    def _note_closure(self) -> None:
        with self._lock:
            self._closures += 1

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        path: str,
        body: bytes | None,
        call: Call,
        most: int,
    ) -> _Answer:
        sock = connection.sock  # the connection forgets it when the server will close
        with call.using(sock):
            sock.settimeout(max(call.left_s, 0.001))
            method = "GET" if body is None else "POST"
            connection.request(method, self._path + path, body, self._headers)
            self._await_answer(sock, call)
            with connection.getresponse() as response:
                if response.status != 200:
                    most = _LARGEST_ERROR
                elif (response.length or 0) > most:
                    raise _TooLargeError
                sized = response.chunked or response.length is not None
                data = b"".join(self._chunks(response, sock, call, most))
                if len(data) > most:
                    if response.status == 200:
                        raise _TooLargeError
                    connection.close()
                elif response.length:  # read1 does not say that bytes are missing
                    raise http.client.IncompleteRead(b"", response.length)
                elif not sized and (call.over or not data):  # nor that the headers were cut
                    raise http.client.IncompleteRead(b"")
                return response.status, response.headers, data

    def _chunks(
        self, response: http.client.HTTPResponse, sock: socket.socket, call: Call, most: int
    ) -> Iterator[bytes]:
        """The answer's bytes, to its end or until there are more than `most`."""
        size = 0
        while size <= most:
            sock.settimeout(max(min(call.left_s, self._stall_s), 0.001))
            chunk = response.read1(_CHUNK)
            if not chunk:
                return
            size += len(chunk)
            yield chunk

    def _await_answer(self, sock: socket.socket, call: Call) -> None:
        """Wait for the first byte, which comes when a branch is complete.

        Raises TimeoutError if the server is gone: it answers nothing on another connection
        either. Not with TLS, which has bytes of its own to read; there the kernel's questions
        (`_watch_peer`) must do.
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
        connection = None
        try:
            connection = self._connect(Call(time.monotonic() + _ASK_EVERY_S))
            connection.request("GET", self._path + "/get_model_info", headers=self._headers)
            return connection.getresponse().status > 0
        except (http.client.HTTPException, ConnectionResetError):
            return True
        except OSError:
            return False
        finally:
            if connection is not None:
                connection.close()

    def _connect(self, call: Call) -> http.client.HTTPConnection:
        timeout = max(min(self._connect_s, call.left_s), 0.001)
        connection = http.client.HTTPConnection(self._host, self._port, timeout=timeout)
        if self._tls is not None:
            connection = http.client.HTTPSConnection(
                self._host, self._port, timeout=timeout, context=self._tls
            )
        connection.connect()
        _watch_peer(connection.sock)
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
            self._note_closure()
            connection.close()


class _TooLargeError(Exception):
    """The answer has more bytes than it may have."""


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


def _watch_peer(sock: socket.socket) -> None:
    """Notice in some ten seconds that the machine at the other end is gone."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):  # macOS names the first one otherwise
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
