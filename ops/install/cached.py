"""Environments of other programs, for tests and benches: made once, shared by all checkouts.

They lie in the user's cache folder, named by what they were made from, so that neither another
checkout nor the next run of CI makes them again. Nothing removes old ones but the user.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from marco_search.errors import LocalServiceFailed
from ops.install import pip

ROOT = Path(__file__).resolve().parents[2]
_BUILD_S = 240.0  # of one installation; then whoever asked is told that there is none
_STAMP = "marco-install"


def python_of(name: str, lock: Path) -> Path | None:
    """The Python of the environment made from `lock`; None if it was not made yet."""
    venv = _place() / _key(name, lock)
    return venv / "bin" / "python" if (venv / _STAMP).exists() else None


def ensure(
    name: str, lock: Path, *, free_gb: float, refuse: Callable[[list[str]], None] | None = None
) -> Path:
    """The Python of the environment made from `lock`, which is made if need be.

    `refuse` is called with the pip command before anything is fetched, and raises to stop it.
    Raises LocalServiceFailed, with the reason, where it can't be made.
    """
    if sys.platform != "linux":
        raise LocalServiceFailed(f"{name}: its environment is made on Linux only")
    try:
        folder = _place()
        venv = folder / _key(name, lock)
        with _only_one(venv.with_suffix(".lock")):
            if not (venv / _STAMP).exists():
                _make(name, venv, lock, free_gb, refuse)
    except OSError as error:
        raise LocalServiceFailed(f"{name}: its environment can't be made: {error}") from None
    return venv / "bin" / "python"


def _make(
    name: str, venv: Path, lock: Path, free_gb: float, refuse: Callable[[list[str]], None] | None
) -> None:
    shutil.rmtree(venv, ignore_errors=True)  # of a run that broke off
    if shutil.disk_usage(venv.parent).free < free_gb * 10**9:
        raise LocalServiceFailed(f"{name}: {venv.parent} has less than {free_gb} GB free")
    print(f"Installing {name} into {venv} (once)", file=sys.stderr, flush=True)
    try:
        command = pip.create_environment(venv)
        if refuse:
            refuse(command)
        pip.install(command, ["-r", str(lock)], timeout_s=_BUILD_S)
    except (SystemExit, subprocess.TimeoutExpired) as error:
        raise LocalServiceFailed(f"{name} can't be installed: {error}") from None
    (venv / _STAMP).write_text(lock.read_text())  # last: without it the next run starts over


def _key(name: str, lock: Path) -> str:
    made_from = f"{sys.version_info[:2]} {platform.machine()} ".encode() + lock.read_bytes()
    return f"{name}-{hashlib.sha256(made_from).hexdigest()[:12]}"


def _place() -> Path:
    """The user's cache folder; the checkout's where there is none to write to."""
    with contextlib.suppress(RuntimeError, OSError):  # no home; not writable
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        folder = Path(base) / "marco-search"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    folder = ROOT / ".marco" / "environments"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def _only_one(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
