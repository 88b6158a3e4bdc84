"""Starting, stopping and asking about the embedded services of one MARCO_HOME.

up(home)                    start them if need be; they stay until down(home)
with local_services(home)   start them if need be; they stop with the last such block,
                            also when its process is killed, unless `up` keeps them

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
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from marco_search.errors import LocalServiceFailed

URLS_NAME, USERS_NAME, LOCK_NAME = "services.json", "users.lock", "supervisor.lock"
KEEP, STOP, _NEITHER = "keep", "stop", "    "
TICK_S, _POLL_S = 0.1, 0.02  # between two looks: while they run; while something is waited for
_START_S = 180.0  # crash recovery of a large database takes its time
_STOP_S = 60.0  # two servers at 20 s each before they are killed
_LEAST_SPACE = 2**25  # bytes: what Postgres needs to start
_ROOT = Path(__file__).resolve().parents[2]
# Supervisors that this process started, to be reaped when they end: where nothing else does it
# (process 1 of a container), they would stay as zombies.
_children: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True, slots=True)
class ServiceUrls:
    """Where the services are, passwords included: never print these."""

    database_url: str = field(repr=False)
    redis_url: str = field(repr=False)


def up(
    home: Path,
    foreground: bool = False,
    on_ready: Callable[[ServiceUrls], None] | None = None,
) -> ServiceUrls:
    """Start the services under `home` unless they run, and keep them until `down`.

    In the foreground (main thread only) this returns when they have been stopped, by `down`
    or a signal; `on_ready` is called once both answer. Raises LocalServiceFailed.
    """
    with local_services(home) as urls:
        if foreground:
            for number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.default_int_handler)
        if on_ready is not None:
            on_ready(urls)
        if foreground:
            try:
                while is_running(home):
                    time.sleep(TICK_S)
            except KeyboardInterrupt:
                down(home)
        else:
            _say(home, KEEP)
    return urls


def down(home: Path) -> bool:
    """Stop the services under `home`, also while they start. False when there was nothing to stop.

    Raises LocalServiceFailed.
    """
    lock, users = home / LOCK_NAME, home / USERS_NAME
    if not lock.exists():
        return False
    ran = is_running(home) or _is_starting(home)
    _say(home, STOP)
    for _ in _ticks(_STOP_S):
        # What a killed supervisor left is gone then, too. Without the word another run has begun.
        with _locked(lock, fcntl.LOCK_EX) or contextlib.nullcontext() as held:
            if held is not None or users.read_text() != STOP:
                return ran
    raise _not_ended(home)


@contextlib.contextmanager
def local_services(home: Path) -> Iterator[ServiceUrls]:
    """Services under `home` inside the block. Raises LocalServiceFailed.

    The last one to leave stops them, and returns when they are gone.
    """
    home, entered = _made(home), os.getpid()
    with _joined(home) as users:
        try:
            yield _started(home)
        finally:
            if os.getpid() == entered:  # no process that was forked inside the block
                _leave(home, users)


def read_urls(home: Path) -> ServiceUrls | None:
    """Where the services under `home` are when they run; None when there never were any.

    Raises LocalServiceFailed when the file is another user's. One that can't be parsed counts
    as none: the next start writes it again.
    """
    file = home / URLS_NAME
    missing_or_odd = FileNotFoundError, NotADirectoryError, ValueError, TypeError
    with usable(file), contextlib.suppress(*missing_or_odd):
        return ServiceUrls(**json.loads(file.read_text()))
    return None


def write_urls(home: Path, urls: ServiceUrls) -> IO[str]:
    """Replace the file in one step: the services run until the new one is closed.

    Nobody else can read it at any moment.
    """
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


def _is_starting(home: Path) -> bool:
    """Whether somebody waits for a supervisor, not only servers that a killed one left."""
    return all(_is_held(home / name, fcntl.LOCK_EX) for name in (LOCK_NAME, USERS_NAME))


def _is_held(file: Path, operation: int) -> bool:
    """Whether others hold what keeps `operation` from the file."""
    with _locked(file, operation) or contextlib.nullcontext() as held:
        return held is None


@contextlib.contextmanager
def usable(file: Path) -> Iterator[None]:
    """Raises LocalServiceFailed for a file, `file` if no other is named, that can't be used."""
    try:
        yield
    except OSError as error:
        file = Path(error.filename) if isinstance(error.filename, str) else file
        dangling = file.is_symlink() and not file.exists()
        reason = "it is a link to nothing" if dangling else error.strerror or error
        raise LocalServiceFailed(
            f"{file} can't be used ({reason}): fix that, or set MARCO_HOME to a folder that "
            "you can write to. If it belongs to another user, work as that user"
        ) from error


def _made(home: Path) -> Path:
    home = home.absolute()
    with usable(home):
        with contextlib.suppress(FileExistsError):  # asked first, two starts could both make it
            home.mkdir(parents=True)
            if os.geteuid() == 0:  # the servers' account must pass; nothing above is opened
                home.chmod(0o711)
        next(home.iterdir(), None)  # neither a file nor a link to nothing
        (home / "logs").mkdir(exist_ok=True)
    return home


def _joined(home: Path) -> IO[str]:
    """The file whose lock says that this process needs the services."""
    for _ in _ticks(_STOP_S):  # the last one may be leaving
        if (users := _locked(home / USERS_NAME, fcntl.LOCK_SH)) is not None:
            return users
    raise _not_ended(home)


def _leave(home: Path, users: IO[str]) -> None:
    """Need them no longer, and stop them unless somebody else does."""
    with contextlib.suppress(BlockingIOError):  # somebody else needs them
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if users.read() != KEEP:
            down(home)
        # Not only closed: a process that was forked meanwhile has the file open, too.
        fcntl.flock(users, fcntl.LOCK_UN)


def _started(home: Path) -> ServiceUrls:
    """The URLs once both servers answer, started if need be."""
    child, log = None, home / "logs" / "supervisor.log"
    for _ in _ticks(_START_S):
        if is_running(home) and (urls := read_urls(home)) is not None:
            return urls
        with _locked(home / LOCK_NAME, fcntl.LOCK_EX) or contextlib.nullcontext() as lock:
            if lock is None:
                continue
            if child is not None and (status := child.wait()) != 0:
                if status < 0:  # the log's last line is of an earlier run
                    raise _failed(home, "the supervisor was killed: try again")
                raise _failed(home, log.read_text(errors="replace").strip().rpartition("\n")[2])
            child = _start(home, lock)  # also if it was stopped meanwhile
    raise _not_ended(home) if child is None else _failed(home, "no answer")


def _start(home: Path, lock: IO[str]) -> subprocess.Popen[bytes]:
    """Start a supervisor, which holds the lock from the beginning."""
    _say(home, _NEITHER)
    _children[:] = [child for child in _children if child.poll() is None]
    log = home / "logs" / "supervisor.log"
    with usable(log), log.open("ab") as file:
        module = "marco_search.local.supervisor"
        child = subprocess.Popen(
            [sys.executable, "-m", module, str(home), str(lock.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            cwd=_ROOT,  # -m looks there first, so never into the user's folder
            start_new_session=True,
            pass_fds=[lock.fileno()],
        )
    _children.append(child)
    return child


def _say(home: Path, word: str) -> None:
    """Tell the supervisor. All words are as long, and replace each other where the disk is full."""
    file = home / USERS_NAME
    with usable(file), os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600), "w") as opened:
        opened.write(word)


def _ticks(seconds: float) -> Iterator[None]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield
        time.sleep(_POLL_S)


def _locked(file: Path, operation: int) -> IO[str] | None:
    """The file, made if missing, and locked until it is closed; None while others hold it."""
    with usable(file):
        opened = os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT, 0o600), "r+")
        try:
            fcntl.flock(opened, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            opened.close()
            return None
    return opened


def _failed(home: Path, reason: str) -> LocalServiceFailed:
    if (free := shutil.disk_usage(home).free) < _LEAST_SPACE:  # not even logs are whole
        reason = f"the disk is full ({free >> 20} MiB free): free 1 GiB, or move MARCO_HOME"
    log = home / "logs" / "supervisor.log"
    return LocalServiceFailed(f"embedded services: {reason} (log: {log})")


def _not_ended(home: Path) -> LocalServiceFailed:
    """The error for processes that hold the lock and do not end by themselves."""
    file, found = home / LOCK_NAME, set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):  # of another user, or gone
            if link.samefile(file):
                found.add(link.parts[2])
    numbers = " ".join(sorted(found - {str(os.getpid())}, key=int))
    return LocalServiceFailed(
        f"an earlier run does not end. End its processes, which hold {file}, with `kill -9 "
        f"{numbers}` and try again: stored data survives that"
    )
