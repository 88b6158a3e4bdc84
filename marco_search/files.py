"""Files and folders that appear whole or not at all, and their hashes."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from marco_search.errors import InputError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to; at the end it becomes `path`, in one step. Nothing stays on an error.

    What a link points to is replaced, not the link. A pipe or a device is written to as it is.
    Raises InputError if the folder can't be written to.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        yield path
        return
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    with _part_of(path, Path.touch) as part:
        yield part
        _sync(part)
        part.replace(path)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write to; at the end it becomes `folder`, in one step. Nothing stays on an error.

    Raises InputError if there is something at `folder` already, or it can't be made.
    """
    # Replacing the current folder would leave the shell in one that is gone.
    if folder.exists() and (
        not folder.is_dir() or any(folder.iterdir()) or folder.samefile(Path.cwd())
    ):
        raise InputError(f"{folder}: already exists; name a new folder, or remove it first")
    with _part_of(folder, Path.mkdir) as part:
        yield part
        for path in part.iterdir():
            _sync(path)
        try:
            part.replace(folder)
        except OSError as error:  # another was made meanwhile
            raise InputError(f"{folder}: {error.strerror}; name a new folder") from None


@contextmanager
def _part_of(path: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """Something beside `path` that is removed at the end, unless it was moved.

    Also when the process is told to end: inside the block SIGTERM and SIGHUP raise SystemExit.
    """

    def end(number: int, _: object) -> None:
        sys.exit(128 + number)  # as shells have it

    part = path.with_name(f".{path.name}.{uuid4().hex[:8]}.part")
    main = threading.current_thread() is threading.main_thread()  # no other gets signals
    numbers = (signal.SIGTERM, signal.SIGHUP) if main else ()
    caught = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in caught:
        signal.signal(number, end)
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            make(part)
        except OSError as error:
            raise InputError(
                f"{path}: {error.strerror}; name a folder that can be written to"
            ) from None
        yield part
    finally:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        with suppress(OSError):
            part.unlink()
        for number in caught:
            signal.signal(number, signal.SIG_DFL)


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Write a text, whole or not at all."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8", errors="replace")


def write_lines(path: Path, lines: Iterable[str]) -> int:
    """Write lines of text, whole or not at all; how many there were."""
    count = 0
    with whole(path) as part, part.open("w", encoding="utf-8", errors="replace") as file:
        for line in lines:
            file.write(line + "\n")
            count += 1
    return count


def digest(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
