"""Writing the state file, and the locks around it.

start.lock       held by whoever starts or stops the services: one at a time
users.lock       shared by everyone inside `local_services`; the supervisor takes it alone
                 to learn that nobody is left, also when a user was killed
supervisor.lock  held by the supervisor as long as it lives: one per home
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from marco_search import local_state
from marco_search.errors import LocalServiceFailed
from marco_search.local.layout import Layout
from marco_search.local_state import LocalState


def read_or_new(layout: Layout) -> tuple[LocalState, bool]:
    """The state of this home, and whether it is new: with passwords never used before."""
    found = local_state.read(layout.home)
    if found is not None:
        return found, False
    passwords = secrets.token_hex(16), secrets.token_hex(16)
    return LocalState(database_password=passwords[0], redis_password=passwords[1]), True


def write(layout: Layout, state: LocalState) -> None:
    """Replace the state file in one step. Nobody else can read it at any moment."""
    temporary = layout.state.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(state.to_json())
    temporary.replace(layout.state)


class FileLock:
    """One open lock file. The kernel drops the lock when the process dies."""

    def __init__(self, path: Path) -> None:
        """Open (and make) the file; take nothing yet. LocalServiceFailed if another user's."""
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise LocalServiceFailed(
                f"{path}: {error.strerror}. If {path.parent} is another user's, work as that "
                "user, or set MARCO_HOME to a folder of yours"
            ) from None

    def acquire(self, *, shared: bool = False) -> None:
        """Wait for the lock."""
        fcntl.flock(self._descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)

    def try_alone(self) -> bool:
        """Take the lock alone if nobody else holds it. A shared lock held is given up."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Give the lock up, also for copies of this process made by fork."""
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


@contextlib.contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[FileLock]:
    """Hold the lock `path` inside the block."""
    lock = FileLock(path)
    try:
        lock.acquire(shared=shared)
        yield lock
    finally:
        lock.release()
        lock.close()


def is_locked(path: Path) -> bool:
    """Whether somebody holds the lock `path` now."""
    lock = FileLock(path)
    try:
        return not lock.try_alone()
    finally:
        lock.close()
