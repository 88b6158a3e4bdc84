"""Starting, stopping and asking about the embedded services of one MARCO_HOME.

up(home)                    start them if need be; they stay until down(home)
with local_services(home)   start them if need be; they stop with the last such block,
                            also when its process is killed, unless `up` keeps them
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from marco_search import local_state
from marco_search.errors import LocalServiceFailed
from marco_search.local.layout import Layout
from marco_search.local.state import FileLock, is_locked, locked

_REPORT_LIMIT_S = 180.0
_SETTLING_LIMIT_S = 60.0  # initdb and a start take a few seconds
_DOWN_LIMIT_S = 45.0  # the supervisor kills a server that takes 20 s to stop
_ROOT = Path(__file__).resolve().parents[2]
# Supervisors that this process started, to be reaped when they end: where nothing else does it
# (process 1 of a container), they would stay as zombies.
_children: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True, slots=True)
class ServiceUrls:
    """Where the running services are, passwords included: never print these."""

    database_url: str
    redis_url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What runs under a home. URLs are shown without their passwords; pids are 0 if unknown."""

    home: Path
    running: bool
    kept: bool  # by `marco up`
    database_url: str = ""
    redis_url: str = ""
    supervisor_pid: int = 0
    postgres_pid: int = 0
    redis_pid: int = 0


def up(
    home: Path,
    foreground: bool = False,
    on_ready: Callable[[ServiceUrls], None] | None = None,
) -> ServiceUrls:
    """Start the services under `home` unless they run, and keep them until `down`.

    In the foreground (main thread only) this returns when they have been stopped, by `down`
    or a signal; `on_ready` is called once both answer. Raises LocalServiceFailed, and
    KeyboardInterrupt when stopped before that.
    """
    layout = Layout.of(home)
    if foreground:
        return _foreground(layout, on_ready)
    with locked(layout.lock("users"), shared=True):
        kept = layout.keep.exists()
        layout.keep.touch()  # inside: nobody can take themselves for the last user now
        try:
            urls = _ensure_running(layout)
            if on_ready is not None:
                on_ready(urls)
        except BaseException:
            if not kept:  # what failed or was interrupted leaves nothing running
                layout.keep.unlink(missing_ok=True)
            raise
    return urls


def down(home: Path) -> bool:
    """Stop the services under `home`. False when nothing ran. Raises LocalServiceFailed."""
    if not home.is_dir():
        return False
    layout = Layout.of(home)
    layout.keep.unlink(missing_ok=True)
    with locked(layout.lock("start")):
        state = local_state.read(layout.home)
        if state is None or state.supervisor is None:
            return False
        was_alive = state.supervised
        if was_alive:
            _end(state.supervisor, signal.SIGTERM)
        # A supervisor that was killed has told the kernel to end these.
        for server in (state.postgres, state.redis):
            if server is not None:
                _end(server, signal.SIGINT)
        return was_alive


def status(home: Path) -> Status:
    """What runs under `home`, without starting or making anything."""
    from marco_search.settings import without_password  # slow to load, and `up` needs none

    home = home.absolute()
    kept = (home / "keep").exists()
    state = local_state.read(home)
    if state is None or not state.running:
        return Status(home=home, running=False, kept=kept)
    return Status(
        home=home,
        running=True,
        kept=kept,
        database_url=without_password(state.database_url),
        redis_url=without_password(state.redis_url),
        supervisor_pid=state.supervisor.pid if state.supervisor else 0,
        postgres_pid=state.postgres.pid if state.postgres else 0,
        redis_pid=state.redis.pid if state.redis else 0,
    )


@contextlib.contextmanager
def local_services(home: Path) -> Iterator[ServiceUrls]:
    """Services under `home` inside the block. Raises LocalServiceFailed.

    The last one to leave stops them, and returns when they are gone.
    """
    layout = Layout.of(home)
    users = FileLock(layout.lock("users"))
    try:
        users.acquire(shared=True)
        yield _ensure_running(layout)
    finally:
        if users.try_alone() and not layout.keep.exists():
            down(layout.home)
        users.release()
        users.close()


def _ensure_running(layout: Layout) -> ServiceUrls:
    """Start the supervisor unless one serves. The caller holds a share of users.lock."""
    with locked(layout.lock("start")):
        state = _settled(layout)
        if state is None:
            answer = _spawn(layout)
            # If not "ready": another was just starting, of a command that was interrupted.
            state = local_state.read(layout.home) if answer == "ready" else _settled(layout)
            if state is None or not state.running:
                reason = "they went away" if answer == "ready" else answer
                log = layout.log("supervisor")
                raise LocalServiceFailed(f"embedded services: {reason} (log: {log})")
        return ServiceUrls(state.database_url, state.redis_url)


def _settled(layout: Layout) -> local_state.LocalState | None:
    """The state of running services, or None when no supervisor is left.

    One that was left starting by a command that was interrupted is waited for, and so is one
    that is stopping. One that takes too long is ended.
    """
    deadline = time.monotonic() + _SETTLING_LIMIT_S
    while True:
        state = local_state.read(layout.home)
        if state is not None and state.running:
            return state
        if not is_locked(layout.lock("supervisor")):
            return None
        if state is not None and state.supervisor is not None and time.monotonic() > deadline:
            _end(state.supervisor, signal.SIGTERM)
        time.sleep(0.02)


def _spawn(layout: Layout) -> str:
    """Start a supervisor; "ready", or what it says went wrong."""
    reader, writer = os.pipe()
    try:
        with layout.log("supervisor").open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "marco_search.local", str(layout.home), str(writer)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=_ROOT,
                pass_fds=(writer,),
                start_new_session=True,
            )
        os.close(writer)
        _children.append(child)
        readable, _, _ = select.select([reader], [], [], _REPORT_LIMIT_S)
        answer = os.read(reader, 10_000).decode() if readable else "it does not answer"
    finally:
        os.close(reader)
    return answer or "it ended without a word"


def _foreground(layout: Layout, on_ready: Callable[[ServiceUrls], None] | None) -> ServiceUrls:
    from marco_search.local.supervisor import Supervisor  # loads both client libraries

    found: list[ServiceUrls] = []

    def ready() -> None:
        state = local_state.read(layout.home)
        if state is not None:
            layout.keep.touch()  # not before: it would keep one that is about to stop
            found.append(ServiceUrls(state.database_url, state.redis_url))
            if on_ready is not None:
                on_ready(found[0])

    deadline = time.monotonic() + _SETTLING_LIMIT_S
    while is_locked(layout.lock("supervisor")) and time.monotonic() < deadline:
        if layout.keep.exists():
            break  # else it leaves when nobody needs it
        time.sleep(0.05)
    try:
        Supervisor(layout).run(ready)
    finally:
        if found:
            layout.keep.unlink(missing_ok=True)
    if not found:
        raise KeyboardInterrupt  # stopped before the services were ready
    return found[0]


def _end(process: local_state.ProcessId, number: signal.Signals) -> None:
    """Signal `process` and wait until it is gone; kill it when it takes too long."""
    deadline = time.monotonic() + _DOWN_LIMIT_S
    with contextlib.suppress(ProcessLookupError):
        if process.alive:
            os.kill(process.pid, number)
        while process.alive:
            if time.monotonic() > deadline:
                os.kill(process.pid, signal.SIGKILL)
            time.sleep(0.02)
    _children[:] = [child for child in _children if child.poll() is None]
