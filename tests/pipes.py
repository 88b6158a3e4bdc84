"""Pipes as shells make them for `marco COMMAND <(...)`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from typing import Any


@contextmanager
def piped(rows: Iterable[Any]) -> Iterator[str]:
    """The path of a pipe, for this process and its children, that the rows come out of once."""
    reading, writing = os.pipe()
    os.set_inheritable(reading, True)
    text = "".join(json.dumps(row) + "\n" for row in rows)

    def write() -> None:
        with suppress(BrokenPipeError), os.fdopen(writing, "w") as pipe:
            pipe.write(text)

    writer = Thread(target=write)
    writer.start()
    try:
        yield f"/dev/fd/{reading}"
    finally:
        os.close(reading)
        writer.join()
