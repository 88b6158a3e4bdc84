"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from marco_search.errors import InputError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to; at the end it becomes `path`, in one step. Nothing stays on an error.

    Raises InputError if the folder can't be written to.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}; name a folder that can be written to"
        ) from None
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
