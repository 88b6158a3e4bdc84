"""What is reachable, what is wrong, and how to mend it. Starts nothing and changes nothing."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from marco_search import local_state
from marco_search.errors import MarcoError
from marco_search.local import binaries, configured, reachable
from marco_search.local.finding import Finding
from marco_search.settings import Settings
from marco_search.text import redacted
from ops.install.host import why_no_embedded_services

_LEAST_SPACE = 2**30  # bytes
_PYTHONS = ((3, 11), (3, 12), (3, 13))


@dataclass(frozen=True, slots=True)
class _Check:
    name: str
    look: Callable[[Settings], Finding]


def run_checks(settings: Settings) -> list[Finding]:
    """All findings, in the order in which one depends on another. Takes up to some seconds."""
    checks = [
        _Check("python", _python),
        _Check("settings", configured.settings),
        _Check("variables", configured.variables),
        _Check("home", _home),
        _Check("disk", _disk),
    ]
    if settings.database_url is None or settings.redis_url is None:
        checks += [_Check("platform", _platform), _Check("programs", _programs)]
    checks += [
        _Check("postgres", reachable.postgres),
        _Check("schema", reachable.schema),
        _Check("pauses", reachable.pauses),
        _Check("guards", reachable.guards),
        _Check("models", reachable.missing_models),
        _Check("redis", reachable.redis),
        _Check("worker", reachable.worker),
        _Check("model", _model),
    ]
    return [_run(check, settings) for check in checks]


def _run(check: _Check, settings: Settings) -> Finding:
    """A check that fails is a finding: it must not keep the others from being made."""
    try:
        found = check.look(settings)
    except MarcoError as error:
        found = Finding(check.name, False, str(error), "")
    except Exception as error:
        found = Finding(check.name, False, f"{type(error).__name__}: {error}", "")
    # What a client library says of an address may quote it: doctor's lines go into reports.
    return replace(found, detail=redacted(found.detail))


def _python(_: Settings) -> Finding:
    ok = sys.version_info[:2] in _PYTHONS
    mend = "set MARCO_PYTHON to a Python 3.11, 3.12 or 3.13 and run `make install`"
    return Finding("python", ok, f"{platform.python_version()} ({sys.executable})", mend)


def _platform(_: Settings) -> Finding:
    reason = why_no_embedded_services()
    detail = reason or f"{platform.system()} {platform.machine()}, glibc"
    mend = "set DATABASE_URL and REDIS_URL to servers of yours"
    return Finding("platform", not reason, detail, mend)


def _programs(_: Settings) -> Finding:
    found = binaries.installed()
    return Finding("programs", True, f"{found.postgres}/postgres, {found.redis_server}", "")


def _home(settings: Settings) -> Finding:
    home = settings.home.absolute()
    mend = "set MARCO_HOME to a folder that you can write to"
    existing = _existing(home)
    if not os.access(existing, os.W_OK | os.X_OK):
        return Finding("home", False, f"{existing} is not writable", mend)
    local_state.read(home)  # raises when it is another user's
    return Finding("home", True, str(home), mend)


def _disk(settings: Settings) -> Finding:
    free = shutil.disk_usage(_existing(settings.home.absolute())).free
    detail = f"{free / 2**30:.1f} GiB free"
    return Finding("disk", free >= _LEAST_SPACE, detail, "free 1 GiB, or move MARCO_HOME")


def _existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists."""
    return next(p for p in (path, *path.parents) if p.exists())


def _model(settings: Settings) -> Finding:
    from marco_search.runtime import open_runtime

    try:
        info = open_runtime(settings).info
    except MarcoError as error:
        mend = "see MARCO_MODEL" if settings.runtime == "embedded" else "see MARCO_RUNTIME"
        return Finding("model", False, str(error), mend)
    detail = f"{info.model} on {info.name} {info.version}, {info.context_tokens} tokens"
    return Finding("model", True, detail, "")
