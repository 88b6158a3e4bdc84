"""Environments of other programs, for tests, benches and training, and processes in them.

They are made once and shared by all checkouts: they lie in the user's cache folder, named by what
they were made from, so that neither another checkout nor the next run of CI makes them again.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

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
