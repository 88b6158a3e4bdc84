"""Environments of other programs, for tests and benches, and servers that run in them.

They are made once and shared by all checkouts: they lie in the user's cache folder, named by what
they were made from, so that neither another checkout nor the next run of CI makes them again.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import requests

from marco_search.errors import LocalServiceFailed
from ops import bootstrap

_BUILD_S = 240.0  # of one installation


def folder(name: str, *locks: Path) -> Path:
    """Where the environment made from `locks` lies."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    made_from = f"{sys.version_info[:2]} {platform.machine()} ".encode()
    made_from += b"".join(lock.read_bytes() for lock in locks)
    return Path(base, "marco-search", f"{name}-{hashlib.sha256(made_from).hexdigest()[:12]}")


def ensure(name: str, *locks: Path, free_gb: float, build_s: float = _BUILD_S) -> Path:
    """The Python of the environment made from `locks`, which is made within `build_s` if need be.

    Raises LocalServiceFailed, with the reason, where it can't be made.
    """
    if sys.platform != "linux":
        raise LocalServiceFailed(f"{name}: its environment is made on Linux only")
    venv = folder(name, *locks)
    try:
        venv.parent.mkdir(parents=True, exist_ok=True)
        if not venv.exists() and shutil.disk_usage(venv.parent).free < free_gb * 10**9:
            raise LocalServiceFailed(f"{name}: {venv.parent} has less than {free_gb} GB free")
        return Path(bootstrap.make_environment(str(venv), [*map(str, locks)], timeout_s=build_s))
    except (SystemExit, subprocess.TimeoutExpired, OSError) as error:
        raise LocalServiceFailed(f"{name} can't be installed: {error}") from None


@contextmanager
def running(command: Sequence[str | Path], **how: Any) -> Iterator[subprocess.Popen[Any]]:
    """A process that is ended after the block, with all that it has started; `how`: see Popen."""
    with subprocess.Popen(command, start_new_session=True, **how) as process:
        try:
            yield process
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


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
