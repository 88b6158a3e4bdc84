"""A TCP proxy that can fall silent: it takes what comes, passes nothing on and resets nothing.

So a network looks that drops packets, to whoever relies on an answer. (The kernel's own
acknowledgements still come: what keepalives would notice is tested by nobody here.)
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit, urlunsplit


class SilentProxy:
    """Listens on a free port of loopback and connects to `host` and `port`."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._silent_from = 0  # connections with a lower number pass nothing on
        self._count = 0
        self._deaf = False
        self._pairs: dict[socket.socket, tuple[socket.socket, int]] = {}
        self._selector = selectors.DefaultSelector()
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._selector.register(self._listening, selectors.EVENT_READ)
        self._ends = False
        self._thread = threading.Thread(target=self._run, name="silent-proxy", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self._listening.getsockname()[1]
        return port

    def url(self, url: str) -> str:
        """`url`, with this proxy in place of its host and port."""
        parts = urlsplit(url)
        user, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{user}{at}127.0.0.1:{self.port}"))

    def cut(self, *, all_new: bool = False) -> None:
        """Forget the connections that are open; with `all_new`, those to come as well."""
        self._deaf = all_new
        self._silent_from = self._count

    def restore(self) -> None:
        """Pass on what comes by new connections. Those that were cut stay so.

        Their server hears that they are over, as it would of itself after a while.
        """
        self._silent_from = self._count
        self._deaf = False
        for sock, (_, number) in list(self._pairs.items()):
            if number < self._silent_from and sock.getpeername() == self._target:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the thread, and with it all connections."""
        self._ends = True
        self._thread.join()

    def _run(self) -> None:
        while not self._ends:
            for key, _ in self._selector.select(0.1):
                if key.fileobj is self._listening:
                    self._accept()
                else:
                    self._pass_on(key.fileobj)  # type: ignore[arg-type]
        for sock in [self._listening, *self._pairs]:
            sock.close()
        self._selector.close()

    def _accept(self) -> None:
        near, _ = self._listening.accept()
        try:
            far = socket.create_connection(self._target, timeout=2)
        except OSError:
            near.close()
            return
        for one, other in ((near, far), (far, near)):
            one.settimeout(5)
            self._pairs[one] = (other, self._count)
            self._selector.register(one, selectors.EVENT_READ)
        self._count += 1

    def _pass_on(self, sock: socket.socket) -> None:
        if sock not in self._pairs:
            return
        other, number = self._pairs[sock]
        try:
            data = sock.recv(1 << 16)
            silent = self._deaf or number < self._silent_from
            if data and not silent:
                other.sendall(data)
            elif not data and silent:
                self._drop(sock)  # nobody hears of it
            elif not data:
                self._drop(sock)
                self._drop(other)
        except OSError:
            self._drop(sock)
            self._drop(other)

    def _drop(self, sock: socket.socket) -> None:
        if self._pairs.pop(sock, None) is not None:
            self._selector.unregister(sock)
            sock.close()


@contextmanager
def silent_proxy(url: str, default_port: int = 0) -> Iterator[SilentProxy]:
    """A proxy to the server that `url` names."""
    parts = urlsplit(url)
    proxy = SilentProxy(parts.hostname or "127.0.0.1", parts.port or default_port)
    try:
        yield proxy
    finally:
        proxy.close()
