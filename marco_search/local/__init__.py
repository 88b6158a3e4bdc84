"""Postgres and Redis for a machine that has neither, started under a folder, MARCO_HOME.

with local_services(home):   starts them if need be; they stop with the last such block, also when
                             its process is killed, unless one was told that they stay
down(home)                   stops them, whoever needs them

Who needs them and whether they run is told by locks on files in the home, which the kernel takes
from a process that is gone, however it ended:

users.lock        shared by all who need the services; whoever can have it alone is the last one.
                  Its word says what else is wanted: KEEP or STOP
supervisor.lock   held by the supervisor (supervisor.py) and by all processes of the servers
services.json     the URLs, mode 0600: ports and passwords last as long as the home. Held by the
                  supervisor while both servers are there
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, TypeVar

from marco_search.errors import LocalServiceFailed

URLS_NAME, USERS_NAME, LOCK_NAME = "services.json", "users.lock", "supervisor.lock"
KEEP, STOP, _NEITHER = "keep", "stop", "    "
TICK_S, _POLL_S = 0.1, 0.02  # between two looks: while they run; while something is waited for
_START_S = 180.0  # crash recovery of a large database takes its time
_STOP_S = 60.0  # a server that takes 20 s is killed
_LEAST_SPACE = 2**25  # bytes: what Postgres needs to start
_T = TypeVar("_T")
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class ServiceUrls:
    """Where the services are, passwords included: never print these."""

    database_url: str = field(repr=False)
    redis_url: str = field(repr=False)


def down(home: Path) -> bool:
    """Stop the services under `home`, also while they start. False when there was nothing to stop.

    Raises LocalServiceFailed.
    """
    lock, users = home / LOCK_NAME, home / USERS_NAME
    if not lock.exists():
        return False
    # Not servers that a killed supervisor left, unless somebody waits for the next one.
    ran = is_running(home) or (_is_held(lock) and _is_held(users))
    _say(home, STOP)
    # What a killed supervisor left is gone then, too. Without the word another run has begun.
    _wait(home, _STOP_S, lambda: not _is_held(lock) or users.read_text() != STOP)
    return ran


@contextlib.contextmanager
def local_services(home: Path, stay: bool = False) -> Iterator[ServiceUrls]:
    """Services under `home` inside the block, and until `down` if they `stay`.

    Otherwise the last one to leave stops them and waits for that. Raises LocalServiceFailed.
    """
    home, entered = home.absolute(), os.getpid()
    _make(home)
    # It waits while the last one leaves.
    with _wait(home, _STOP_S, lambda: _locked(home / USERS_NAME, fcntl.LOCK_SH)) as users:
        try:
            yield _wait(home, _START_S, partial(_started, home, []))
            if stay:
                _say(home, KEEP)
        finally:
            if os.getpid() == entered:  # no process that was forked inside the block
                _leave(home, users)


def read_urls(home: Path) -> ServiceUrls | None:
    """Where the services under `home` are when they run; None when there never were any.

    A file that can't be parsed is none. Raises LocalServiceFailed when it is another user's.
    """
    file = home / URLS_NAME
    missing_or_odd = FileNotFoundError, NotADirectoryError, ValueError, TypeError
    with usable(file), contextlib.suppress(*missing_or_odd):
        return ServiceUrls(**json.loads(file.read_text()))
    return None


def write_urls(home: Path, urls: ServiceUrls) -> IO[str]:
    """Replace the file, for its owner's eyes only: the services run until the new one is closed."""
    temporary = home / f"{URLS_NAME}.new"
    temporary.touch(0o600)
    file = temporary.open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    json.dump(asdict(urls), file, indent=2)
    file.flush()
    temporary.replace(home / URLS_NAME)
    return file


def is_running(home: Path) -> bool:
    """Whether the services under `home` run. Raises LocalServiceFailed as `read_urls` does."""
    file = home / URLS_NAME
    return file.exists() and _is_held(file, fcntl.LOCK_SH)


@contextlib.contextmanager
def usable(file: Path) -> Iterator[None]:
    """Raises LocalServiceFailed for a file, `file` if no other is named, that can't be used."""
    try:
        yield
    except OSError as error:
        file = Path(error.filename) if isinstance(error.filename, str) else file
        link = isinstance(error, FileExistsError | FileNotFoundError) and file.is_symlink()
        reason = "it links to nothing" if link and not file.exists() else error.strerror or error
        raise LocalServiceFailed(
            f"{file} can't be used ({reason}): fix that, or set MARCO_HOME to a folder that you "
            "can write to and, as root, that others can enter. If it belongs to another user, "
            "work as that user"
        ) from error


def _make(home: Path) -> None:
    with usable(home):
        is_new = not home.exists()
        (home / "logs").mkdir(parents=True, exist_ok=True)
        if is_new and os.geteuid() == 0:  # the servers' account must pass; no other is opened
            home.chmod(0o711)


def _leave(home: Path, users: IO[str]) -> None:
    """Need them no longer, and stop them unless somebody else does."""
    with contextlib.suppress(BlockingIOError):  # somebody else needs them
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if users.read() != KEEP:
            down(home)
        # Not only closed: a process that was forked meanwhile has the file open, too.
        fcntl.flock(users, fcntl.LOCK_UN)


def _started(home: Path, children: list[subprocess.Popen[bytes]]) -> ServiceUrls | None:
    """The URLs if both servers answer. Starts a supervisor, one of `children`, if there is none."""
    if is_running(home) and (urls := read_urls(home)) is not None:
        return urls
    log = home / "logs" / "supervisor.log"
    with _locked(home / LOCK_NAME) or contextlib.nullcontext() as lock:
        if lock is None:
            return None
        if children and (status := children.pop().wait()) != 0:
            raise _failed(log, status)
        _say(home, _NEITHER)  # also if it was stopped meanwhile
        with usable(log), log.open("ab") as file:
            module, number = "marco_search.local.supervisor", lock.fileno()
            child = subprocess.Popen(
                [sys.executable, "-m", module, str(home), str(number)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd=_ROOT,  # -m looks there first, so never into the user's folder
                start_new_session=True,
                pass_fds=[number],
            )
            children.append(child)
    return None


def _say(home: Path, word: str) -> None:
    """Tell the supervisor. All words are as long, and replace each other where the disk is full."""
    file = home / USERS_NAME
    with usable(file), os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600), "w") as opened:
        opened.write(word)


def _wait(home: Path, seconds: float, look: Callable[[], _T | None]) -> _T:
    """What `look` finds, as soon as it finds something. Raises LocalServiceFailed."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > deadline:
            raise _not_ended(home)
        time.sleep(_POLL_S)
    return found


def _is_held(file: Path, operation: int = fcntl.LOCK_EX) -> bool:
    """Whether others hold what keeps `operation` from the file."""
    with _locked(file, operation) or contextlib.nullcontext() as held:
        return held is None


def _locked(file: Path, operation: int = fcntl.LOCK_EX) -> IO[str] | None:
    """The file, made if missing, and locked until it is closed; None while others hold it."""
    with usable(file):
        opened = os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT, 0o600), "r+")
        try:
            fcntl.flock(opened, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            opened.close()
            return None
    return opened


def _failed(log: Path, status: int) -> LocalServiceFailed:
    line = log.read_text(errors="replace").strip().rpartition("\n")[2]
    reason = line.rpartition("LocalServiceFailed: ")[2]
    if status < 0:  # the log is of an earlier run
        reason = "the supervisor was killed: try again"
    if (free := shutil.disk_usage(log.parent).free) < _LEAST_SPACE:  # not even logs are whole
        reason = f"the disk is full ({free >> 20} MiB free): free 1 GiB, or move MARCO_HOME"
    return LocalServiceFailed(f"embedded services: {reason} (log: {log})")


def _not_ended(home: Path) -> LocalServiceFailed:
    """The error for processes that hold the lock, and neither answer nor end."""
    file, found = home / LOCK_NAME, set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):  # of another user, or gone
            if link.samefile(file):
                found.add(link.parts[2])
    numbers = " ".join(found - {str(os.getpid())})
    return LocalServiceFailed(
        f"a run of the embedded services neither answers nor ends. End its processes, which hold "
        f"{file}, with `kill -9 {numbers}` and try again: stored data survives that"
    )
