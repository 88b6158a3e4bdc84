"""Environments of other programs, for tests and benches: made once, shared by all checkouts.

They lie in the user's cache folder, named by what they were made from, so that neither another
checkout nor the next run of CI makes them again.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from marco_search.errors import LocalServiceFailed
from ops import bootstrap

_BUILD_S = 240.0  # of one installation


def folder(name: str, lock: Path) -> Path:
    """Where the environment made from `lock` lies."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    made_from = f"{sys.version_info[:2]} {platform.machine()} ".encode() + lock.read_bytes()
    return Path(base, "marco-search", f"{name}-{hashlib.sha256(made_from).hexdigest()[:12]}")


def ensure(name: str, lock: Path, *, free_gb: float) -> Path:
    """The Python of the environment made from `lock`, which is made if need be.

    Raises LocalServiceFailed, with the reason, where it can't be made.
    """
    if sys.platform != "linux":
        raise LocalServiceFailed(f"{name}: its environment is made on Linux only")
    venv = folder(name, lock)
    try:
        venv.parent.mkdir(parents=True, exist_ok=True)
        if not venv.exists() and shutil.disk_usage(venv.parent).free < free_gb * 10**9:
            raise LocalServiceFailed(f"{name}: {venv.parent} has less than {free_gb} GB free")
        return Path(bootstrap.make_environment(str(venv), [str(lock)], timeout_s=_BUILD_S))
    except (SystemExit, subprocess.TimeoutExpired, OSError) as error:
        raise LocalServiceFailed(f"{name} can't be installed: {error}") from None
