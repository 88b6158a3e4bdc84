"""What the supervisor has written down about the services of one MARCO_HOME, and its locks.

services.json    ports, passwords and processes, mode 0600
keep             present while `marco up` wants the services to stay
start.lock       held while the services are being started: one starter at a time
users.lock       shared by everyone inside `local_services`; the supervisor takes it alone
                 to learn that nobody is left, also when a user was killed
supervisor.lock  held by the supervisor as long as it lives: one per home
logs/            of Postgres, Redis and the supervisor
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from marco_search.errors import LocalServiceFailed

FILE_NAME = "services.json"
NOT_ALONE = 75  # exit status of a supervisor that finds another one
_END_S = 45.0  # the supervisor kills a server that takes 20 s to stop


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process, distinguished from a later one with the same number."""

    pid: int
    started: int  # clock ticks between boot and its start, /proc/PID/stat field 22
    boot: str  # /proc/sys/kernel/random/boot_id

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """The process that has `pid` now; None when there is none or it is a zombie."""
        try:
            # The name in parentheses may hold anything, so count from the last one.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except (OSError, ValueError):
            return None
        if len(fields) < 20 or fields[0] in "ZX":
            return None
        return cls(pid, int(fields[19]), boot)

    @property
    def alive(self) -> bool:
        """Whether this very process still runs."""
        return ProcessId.of(self.pid) == self

    def end(self, number: signal.Signals) -> None:
        """Send a signal and wait until the process is gone; kill it when it takes too long."""
        deadline = time.monotonic() + _END_S
        with contextlib.suppress(ProcessLookupError):
            if self.alive:
                os.kill(self.pid, number)
            while self.alive:
                if time.monotonic() > deadline:
                    os.kill(self.pid, signal.SIGKILL)
                time.sleep(0.02)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalState:
    """Ports and passwords last as long as the home; processes while they run."""

    database_password: str = field(repr=False)
    redis_password: str = field(repr=False)
    database_port: int = 0  # 0: none chosen yet
    redis_port: int = 0
    ready: bool = False
    supervisor: ProcessId | None = None
    postgres: ProcessId | None = None
    redis: ProcessId | None = None

    @property
    def supervised(self) -> bool:
        """Whether the supervisor that wrote this is still alive."""
        return self.supervisor is not None and self.supervisor.alive

    @property
    def running(self) -> bool:
        """Whether the services have answered and are still supervised."""
        return self.ready and self.supervised

    @property
    def database_url(self) -> str:
        """URL of the embedded Postgres, with its password."""
        return f"postgresql://marco:{self.database_password}@127.0.0.1:{self.database_port}/marco"

    @property
    def redis_url(self) -> str:
        """URL of the embedded Redis, with its password."""
        return f"redis://:{self.redis_password}@127.0.0.1:{self.redis_port}/0"


def read(home: Path) -> LocalState | None:
    """The state of the services under `home`; None when there never were any.

    Raises LocalServiceFailed when the file is another user's. One that can't be parsed counts
    as none: the next start writes it again.
    """
    file = home / FILE_NAME
    try:
        fields = json.loads(file.read_text())
        for name in ("supervisor", "postgres", "redis"):
            if fields[name] is not None:
                fields[name] = ProcessId(**fields[name])
        return LocalState(**fields)
    except PermissionError:
        raise _other_user(file) from None
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, KeyError):
        return None


def is_running(home: Path) -> bool:
    """Whether the services under `home` run and have answered."""
    state = read(home.absolute())
    return state is not None and state.running


def write(home: Path, state: LocalState) -> None:
    """Replace the state file in one step. Nobody else can read it at any moment."""
    temporary = home / f"{FILE_NAME}.new"
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(asdict(state), file, indent=2)
    temporary.replace(home / FILE_NAME)


@contextlib.contextmanager
def open_lock(path: Path) -> Iterator[int]:
    """A lock file, for `fcntl.flock`. The kernel drops the lock when the process dies."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        raise _other_user(path) from None
    try:
        yield descriptor
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # also for copies of this process made by fork
        os.close(descriptor)


def lock_alone(descriptor: int) -> bool:
    """Take the lock alone if nobody else holds it. A share that is held is lost either way."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_supervised(home: Path) -> bool:
    """Whether a supervisor lives, also one that has not written its state yet."""
    with open_lock(home / "supervisor.lock") as lock:
        return not lock_alone(lock)


def _other_user(file: Path) -> LocalServiceFailed:
    return LocalServiceFailed(
        f"{file} can't be opened. If it belongs to another user: work as that user, or set "
        "MARCO_HOME to a folder of yours"
    )
