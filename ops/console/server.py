"""Listening: one process, whose socket takes connections before anything is said about it."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import uvicorn
from starlette.types import ASGIApp

from marco_search.errors import AddressTaken

LOOPBACK = ("127.0.0.1", "::1", "localhost")
_STOPPING = (signal.SIGINT, signal.SIGTERM)


def serve(app: ASGIApp, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Answer until SIGINT or SIGTERM. `ready` gets the address; port 0 takes a free one.

    Raises AddressTaken.
    """
    with closing(bound(host, port)) as listening:
        shown = f"[{host}]" if ":" in host else host
        ready(f"http://{shown}:{listening.getsockname()[1]}/")
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=5,
        )
        with _signals_end_quietly():
            uvicorn.Server(config).run(sockets=[listening])


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
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen()
    except (OSError, OverflowError) as error:
        raise AddressTaken(f"can't listen at {host}, port {port}: {error}; try --port 0") from None
    return listening
