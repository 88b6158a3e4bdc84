"""Requests to servers, bounded in time: deadlines, and detection of vanished machines.

A socket's own timeout restarts with every byte, so a server that sends one byte at a time
could block a caller forever.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import SplitResult

from marco_search.errors import InputError

if TYPE_CHECKING:
    import ssl
    from http.client import HTTPResponse

KEEPALIVE = {
    getattr(socket, name): value
    for name, value in (
        ("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 8000),
    )
    if hasattr(socket, name)  # macOS names the first one otherwise
}  # fmt: skip
"""Socket options that detect a vanished machine in about ten seconds.

Seconds and counts; TCP_USER_TIMEOUT, for packets that are not acknowledged, in milliseconds.
"""


def watch_peer(sock: socket.socket) -> None:
    """Detect in about ten seconds that the machine at the other end is gone."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE.items():
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


def port_of(parts: SplitResult) -> int:
    """The port of an address, to be given to http.client, which would otherwise take the end of
    an IPv6 address for the port. Raises ValueError.
    """
    return parts.port or (443 if parts.scheme == "https" else 80)


class Call:
    """One request, with all its retries, until `deadline` (of time.monotonic())."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    @property
    def cancelled(self) -> bool:
        """True once it was cut short."""
        return self._cancelled.is_set()

    @property
    def over(self) -> bool:
        """True when it was cut short or its time is up: do no more for it."""
        return self.cancelled or self.left_s <= 0

    @property
    def left_s(self) -> float:
        """Seconds to the deadline; less than 0 after it."""
        return self.deadline - time.monotonic()

    @property
    def timeout_s(self) -> float:
        """The same as a socket's timeout, for which 0 has another meaning."""
        return max(self.left_s, 0.001)

    def wait(self, seconds: float) -> bool:
        """Sleep, at most to the deadline. True if there is time for more."""
        self._cancelled.wait(max(0.0, min(seconds, self.left_s)))
        return not self.over

    def cancel(self) -> None:
        """Cut it short."""
        self._cancelled.set()
        self._end()

    @contextlib.contextmanager
    def using(self, connection: socket.socket) -> Iterator[None]:
        """During the block the connection ends with the call: at the deadline, or by `cancel`.

        A thread that reads from it sees the end of the stream.
        """
        timer = threading.Timer(max(self.left_s, 0.0), self._end)
        timer.daemon = True
        timer.start()
        with self._lock:
            self._socket = connection
        if self.over:
            self._end()
        try:
            yield
        finally:
            timer.cancel()
            with self._lock:
                self._socket = None

    def _end(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            if self._socket is not None:
                # Past the TLS of the socket, which the reading thread uses.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


def connected(
    host: str,
    port: int,
    call: Call,
    tls: ssl.SSLContext | None = None,
    check: Callable[[str], object] = lambda address: None,
) -> socket.socket:
    """A connection to the first address of the host that answers, with `tls` if given.

    The remaining addresses share the call's remaining time. `check` raises InputError for
    an address that is not allowed. Raises OSError, InputError.
    """
    sock = _first(host, port, call, check)
    if tls is None:
        return sock
    with sock, sock.dup() as twin, call.using(twin):  # TLS takes the socket itself over
        return tls.wrap_socket(sock, server_hostname=host)


def _first(host: str, port: int, call: Call, check: Callable[[str], object]) -> socket.socket:
    failure: Exception | None = None
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for at, (*_, where) in enumerate(found):
        address, share_s = str(where[0]), call.timeout_s / (len(found) - at)
        try:
            check(address)
            sock = socket.create_connection((address, port), share_s)
        except (OSError, InputError) as error:
            failure = failure or error
        else:
            sock.settimeout(call.timeout_s)
            return sock
    raise failure or OSError(f"{host} has no address")


@contextlib.contextmanager
def posted(
    parts: SplitResult,
    body: bytes,
    headers: Mapping[str, str],
    call: Call,
    check: Callable[[str], object] = lambda address: None,
) -> Iterator[HTTPResponse]:
    """The response to a POST to this address; both end with the call. `check`: see `connected`.

    Raises OSError, HTTPException, ValueError, InputError.
    """
    import http.client  # most processes only want the options above
    import ssl

    host, port = parts.hostname or "", port_of(parts)
    tls = ssl.create_default_context() if parts.scheme == "https" else None
    connection = http.client.HTTPConnection(host, port)
    if tls is not None:
        connection = http.client.HTTPSConnection(host, port, context=tls)
    connection.sock = connected(host, port, call, tls, check)
    with contextlib.closing(connection), call.using(connection.sock):
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("POST", path, body, headers)
        with connection.getresponse() as response:
            yield response


def seconds_of(retry_after: str | None) -> float | None:
    """Seconds from a Retry-After header, which holds seconds or a date."""
    if retry_after is None:
        return None
    with contextlib.suppress(ValueError):
        return max(0.0, float(retry_after))
    with contextlib.suppress(ValueError, OverflowError):
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    return None
