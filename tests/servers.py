"""Servers of other programs, run for the length of a test."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import requests

from marco_search.errors import LocalServiceFailed
from ops.environment import running


@contextmanager
def serving(
    name: str,
    command: Sequence[str],
    variables: Mapping[str, str],
    log: Path,
    ready: Callable[[str], bool],
    start_s: float,
) -> Iterator[str]:
    """Run a server on loopback until the end of the block: its address, once it is `ready` there.

    `command` is given --host and --port. `variables` are added to this process' environment, less
    what is Python's or SGLang's. What it prints goes to `log`. Raises LocalServiceFailed if it is
    not ready within `start_s`.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "SGLANG_"))}
    log.parent.mkdir(parents=True, exist_ok=True)
    how = {"env": kept | dict(variables), "preexec_fn": _end_with_parent}
    command = [*command, "--host", "127.0.0.1", "--port", str(port)]
    with (
        log.open("wb") as file,
        running(command, stdout=file, stderr=subprocess.STDOUT, **how) as server,
    ):
        _wait(name, server, log, partial(ready, url), start_s)
        yield url


def _wait(
    name: str,
    server: subprocess.Popen[Any],
    log: Path,
    ready: Callable[[], bool],
    start_s: float,
) -> None:
    end = time.monotonic() + start_s
    while time.monotonic() < end and server.poll() is None:
        with suppress(requests.RequestException):
            if ready():
                return
        time.sleep(0.5)
    tail = log.read_text(errors="replace").strip().splitlines()[-5:]
    raise LocalServiceFailed(f"{name} did not start; the end of {log}: " + " | ".join(tail))


def _end_with_parent() -> None:
    """Linux: end the server when the process that started it is killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
