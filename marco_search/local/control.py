"""Starting, stopping and asking about the embedded services of one MARCO_HOME.

up(home)                    start them if need be; they stay until down(home)
with local_services(home)   start them if need be; they stop with the last such block,
                            also when its process is killed, unless `up` keeps them

Whoever needs the services is connected to their supervisor (supervisor.py). It tells each user
their URLs once they answer, and hangs up when the user leaves: on the last one, when all is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from marco_search.errors import LocalServiceFailed

URLS_NAME, SOCKET_NAME, LOCK_NAME = "services.json", "supervisor.sock", "supervisor.lock"
NEED, KEEP, STOP = b"need", b"keep", b"stop"  # what users, `up` and `down` tell the supervisor
WORD_BYTES = 4
TICK_S = 0.25
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

    def to_json(self) -> str:
        """What is stored, and told to users."""
        return json.dumps(asdict(self), indent=2)


def up(
    home: Path,
    foreground: bool = False,
    on_ready: Callable[[ServiceUrls], None] | None = None,
) -> ServiceUrls:
    """Start the services under `home` unless they run, and keep them until `down`.

    In the foreground (main thread only) this returns when they have been stopped, by `down`
    or a signal; `on_ready` is called once both answer. Raises LocalServiceFailed.
    """
    with _in_use(home) as (urls, supervisor):
        if foreground:
            for number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.default_int_handler)
        if on_ready is not None:
            on_ready(urls)
        if foreground:
            with contextlib.suppress(KeyboardInterrupt):
                supervisor.recv(1)  # nothing more is said: until it hangs up
        with contextlib.suppress(ConnectionError):
            supervisor.sendall(STOP if foreground else KEEP)
    return urls


def down(home: Path) -> bool:
    """Stop the services under `home`. False when nothing ran. Raises LocalServiceFailed."""
    while (supervisor := _connected(home)) is None:
        if not (home / LOCK_NAME).exists():
            return False
        if (lock := acquired_lock(home)) is not None:  # what a killed supervisor left is gone
            os.close(lock)
            return False
    with contextlib.suppress(ConnectionError):
        supervisor.sendall(STOP)
    _leave(home, supervisor)
    return True


@contextlib.contextmanager
def local_services(home: Path) -> Iterator[ServiceUrls]:
    """Services under `home` inside the block. Raises LocalServiceFailed.

    The last one to leave stops them, and returns when they are gone.
    """
    with _in_use(home) as (urls, _):
        yield urls


def read_urls(home: Path) -> ServiceUrls | None:
    """Where the services under `home` are when they run; None when there never were any.

    Raises LocalServiceFailed when the file is another user's. One that can't be parsed counts
    as none: the next start writes it again.
    """
    file = home / URLS_NAME
    try:
        return ServiceUrls(**json.loads(file.read_text()))
    except PermissionError as error:
        raise unusable(file, error) from None
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return None


def write_urls(home: Path, urls: ServiceUrls) -> None:
    """Replace the file in one step. Nobody else can read it at any moment."""
    temporary = home / f"{URLS_NAME}.new"
    with contextlib.suppress(FileNotFoundError):  # the whole home is gone
        temporary.touch(0o600)
        temporary.write_text(urls.to_json())
        temporary.replace(home / URLS_NAME)


def is_running(home: Path) -> bool:
    """Whether the services under `home` run, or are being started."""
    with _connected(home) or contextlib.nullcontext() as supervisor:
        return supervisor is not None


@contextlib.contextmanager
def socket_address(home: Path) -> Iterator[str]:
    """The address of the supervisor's socket. A path may be longer than an address."""
    folder = os.open(home, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{SOCKET_NAME}"
    finally:
        os.close(folder)


def acquired_lock(home: Path) -> int | None:
    """The lock, once an earlier run has ended; None when a supervisor is there.

    Raises LocalServiceFailed that names the processes which have not ended.
    """
    file = home / LOCK_NAME
    try:
        lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise unusable(file, error) from None
    deadline = time.monotonic() + _STOP_S
    while time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        if is_running(home):
            os.close(lock)
            return None
        time.sleep(TICK_S)
    raise _not_ended(home)


def unusable(file: Path, error: OSError) -> LocalServiceFailed:
    """The error for a file, or one that `error` names, in or of a home, that can't be used."""
    file = Path(error.filename) if isinstance(error.filename, str) else file
    dangling = file.is_symlink() and not file.exists()
    reason = "it is a link to nothing" if dangling else error.strerror or error
    return LocalServiceFailed(
        f"{file} can't be used ({reason}): put that right, or set MARCO_HOME to a folder that you "
        "can write to. If it belongs to another user, work as that user"
    )


@contextlib.contextmanager
def _in_use(home: Path) -> Iterator[tuple[ServiceUrls, socket.socket]]:
    """The services inside the block, and the connection that keeps them."""
    try:
        urls, supervisor = _ready_services(_made(home))
    except OSError as error:
        raise unusable(home, error) from None
    try:
        yield urls, supervisor
    finally:
        _leave(home, supervisor)


def _made(home: Path) -> Path:
    home = home.absolute()
    with contextlib.suppress(FileExistsError):  # asked first, two starts could both make it
        home.mkdir(parents=True)
        if os.geteuid() == 0:  # the servers' account must pass; nothing above is opened
            home.chmod(0o711)
    next(home.iterdir(), None)  # neither a file nor a link to nothing
    (home / "logs").mkdir(exist_ok=True)
    return home


def _ready_services(home: Path) -> tuple[ServiceUrls, socket.socket]:
    """The services once they answer, started if need be, and a connection that keeps them."""
    log, reason = home / "logs" / "supervisor.log", "no answer"
    deadline = time.monotonic() + _START_S
    while (left := deadline - time.monotonic()) > 0:
        supervisor, child = _connected(home), None
        if supervisor is None:
            supervisor, child = _start(home, log)
        with contextlib.ExitStack() as stack:
            stack.callback(_leave, home, supervisor)
            supervisor.settimeout(left)
            with contextlib.suppress(ConnectionError, TimeoutError):
                supervisor.sendall(NEED)
                if said := supervisor.recv(4096):
                    stack.pop_all()
                    supervisor.settimeout(None)
                    return ServiceUrls(**json.loads(said)), supervisor
        # Else it was on its way out, or another one was quicker.
        if child is not None and child.wait() != 0:
            last_line = log.read_text(errors="replace").strip().rpartition("\n")[2]
            reason = last_line or "the supervisor was killed"
            if (free := shutil.disk_usage(home).free) < _LEAST_SPACE:  # not even logs are whole
                reason = f"the disk is full ({free >> 20} MiB free): free 1 GiB, or move MARCO_HOME"
            break
    raise LocalServiceFailed(f"embedded services: {reason} (log: {log})")


def _start(home: Path, log: Path) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Start a supervisor, to which this process is connected from the beginning."""
    _children[:] = [child for child in _children if child.poll() is None]
    ours, theirs = socket.socketpair()
    with theirs, log.open("ab") as file:
        module = "marco_search.local.supervisor"
        child = subprocess.Popen(
            [sys.executable, "-m", module, str(home), str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            cwd=_ROOT,  # -m looks there first, so never into the user's folder
            start_new_session=True,
            pass_fds=[theirs.fileno()],
        )
    _children.append(child)
    return ours, child


def _connected(home: Path) -> socket.socket | None:
    """A connection to the supervisor; None when there is none."""
    supervisor = socket.socket(socket.AF_UNIX)
    try:
        with socket_address(home) as address:
            supervisor.connect(address)
        return supervisor
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        supervisor.close()
        return None
    except OSError as error:
        raise unusable(home / SOCKET_NAME, error) from None


def _leave(home: Path, supervisor: socket.socket) -> None:
    """Need the services no more. Returns when they are gone, unless somebody else needs them.

    Raises LocalServiceFailed if the supervisor does not answer.
    """
    with supervisor, contextlib.suppress(OSError):
        supervisor.settimeout(_STOP_S)
        try:
            # Said, not only closed: a process that was forked meanwhile holds the connection, too.
            supervisor.shutdown(socket.SHUT_WR)
            while supervisor.recv(4096):
                pass
        except TimeoutError:
            raise _not_ended(home) from None


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
        f"{numbers}` and try again: what is stored survives that"
    )
