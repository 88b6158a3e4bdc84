"""Starting, stopping and asking about the embedded services of one MARCO_HOME.

up(home)                    start them if need be; they stay until down(home)
with local_services(home)   start them if need be; they stop with the last such block,
                            also when its process is killed, unless `up` keeps them
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from marco_search.errors import LocalServiceFailed
from marco_search.local.state import (
    NOT_ALONE,
    is_running,
    is_supervised,
    lock_alone,
    open_lock,
    read,
)

_START_S = 180.0  # crash recovery of a large database takes its time
_POLL_S = 0.02
_ROOT = Path(__file__).resolve().parents[2]
# Supervisors that this process started, to be reaped when they end: where nothing else does it
# (process 1 of a container), they would stay as zombies.
_children: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True, slots=True)
class ServiceUrls:
    """Where the running services are, passwords included: never print these."""

    database_url: str
    redis_url: str


def up(
    home: Path,
    foreground: bool = False,
    on_ready: Callable[[ServiceUrls], None] | None = None,
) -> ServiceUrls:
    """Start the services under `home` unless they run, and keep them until `down`.

    In the foreground (main thread only) this returns when they have been stopped, by `down`
    or a signal; `on_ready` is called once both answer. Raises LocalServiceFailed.
    """
    with local_services(home, keep=not foreground) as urls:
        if on_ready is not None:
            on_ready(urls)
        if foreground:
            _wait_for_stop(home)
    return urls


def down(home: Path) -> bool:
    """Stop the services under `home`. False when nothing ran. Raises LocalServiceFailed."""
    if not home.is_dir():
        return False
    (home / "keep").unlink(missing_ok=True)
    state = read(home)
    while (state is None or not state.supervised) and is_supervised(home):
        time.sleep(_POLL_S)  # it has just started and not written its state yet
        state = read(home)
    if state is None or state.supervisor is None:
        return False
    was_alive = state.supervised
    state.supervisor.end(signal.SIGTERM)
    # If it was killed before, the kernel has asked these to end.
    for server in (state.postgres, state.redis):
        if server is not None:
            server.end(signal.SIGINT)
    _children[:] = [child for child in _children if child.poll() is None]
    return was_alive


@contextlib.contextmanager
def local_services(home: Path, *, keep: bool = False) -> Iterator[ServiceUrls]:
    """Services under `home` inside the block. Raises LocalServiceFailed.

    The last one to leave stops them, and returns when they are gone; with `keep`, they stay
    afterwards, unless the block fails.
    """
    home = _made(home)
    kept = home / "keep"
    was_kept = kept.exists()
    with open_lock(home / "users.lock") as users:
        fcntl.flock(users, fcntl.LOCK_SH)
        try:
            if keep:  # with a share: nobody can take themselves for the last user now
                kept.touch()
            with open_lock(home / "start.lock") as start:
                fcntl.flock(start, fcntl.LOCK_EX)
                urls = _ensure_running(home)
            yield urls
        except BaseException:
            if keep and not was_kept:
                kept.unlink(missing_ok=True)
            raise
        finally:
            if lock_alone(users) and not kept.exists():
                down(home)


def _made(home: Path) -> Path:
    home = home.absolute()
    try:
        if not home.exists():
            home.mkdir(parents=True)
            if os.geteuid() == 0:  # the servers' account must pass; nothing above is opened
                home.chmod(0o711)
        (home / "logs").mkdir(exist_ok=True)
    except OSError as error:
        raise LocalServiceFailed(
            f"MARCO_HOME {home} can't be used ({error.strerror}): set MARCO_HOME to a folder "
            "you can write to"
        ) from None
    return home


def _ensure_running(home: Path) -> ServiceUrls:
    """Start a supervisor unless one serves. The caller holds both locks."""
    child: subprocess.Popen[bytes] | None = None
    log = home / "logs" / "supervisor.log"
    reason = "no answer"
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        state = read(home)
        if state is not None and state.running:
            return ServiceUrls(state.database_url, state.redis_url)
        if child is not None and child.poll() not in (None, 0, NOT_ALONE):
            reason = log.read_text(errors="replace").strip().rpartition("\n")[2]
            break
        if (child is None or child.poll() is not None) and not is_supervised(home):
            child = _spawn(home, log)
        time.sleep(_POLL_S)
    raise LocalServiceFailed(f"embedded services: {reason} (log: {log})")


def _spawn(home: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        child = subprocess.Popen(
            [sys.executable, "-m", "marco_search.local.supervisor", str(home)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            cwd=_ROOT,  # -m looks there first, so never into the user's folder
            start_new_session=True,
        )
    _children.append(child)
    return child


def _wait_for_stop(home: Path) -> None:
    stop = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in numbers}
    try:
        while is_running(home) and not stop.wait(0.25):
            pass
        down(home)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
