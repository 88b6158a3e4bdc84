"""Folders for the data of Postgres: in memory, where there is room.

Most tests have a database of their own, which is some 500 files. On a disk, making them can take
ten times as long: ext4 looks at every file that was deleted lately before it makes another.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_MEMORY = Path("/dev/shm")
_ENOUGH = 4 << 30  # bytes. A container has 64 MiB unless it is given more
_PREFIX = "marco-data-"


@contextmanager
def data_folder() -> Iterator[Path]:
    """A folder that root's servers can enter, deleted at the end."""
    place = _MEMORY if _has_room() else Path(tempfile.gettempdir())
    with _locked(place):
        _delete_abandoned(place)
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
        folder.chmod(0o711)
        lock = _lock(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
        os.close(lock)


def _has_room() -> bool:
    with suppress(OSError):
        return os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free >= _ENOUGH
    return False


def _delete_abandoned(place: Path) -> None:
    """Delete what a killed run left: memory has no one else who would."""
    for folder in place.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # another user's, or in use
            lock = _lock(folder, fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = _lock(folder)
    try:
        yield
    finally:
        os.close(lock)


def _lock(folder: Path, how: int = 0) -> int:
    """The open folder, locked until it is closed. Raises OSError where it is not to be had."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | how)
    except OSError:
        os.close(opened)
        raise
    return opened
