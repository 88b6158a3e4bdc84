"""Remembers which texts a server must have in its prefix cache, because it saw them lately."""

from __future__ import annotations

import threading
from collections import deque


class SeenTexts:
    """The last `size` texts, each with the server that saw it. Safe to use from many threads."""

    def __init__(self, size: int) -> None:
        self._lock = threading.Lock()
        self._texts: deque[tuple[str, str]] = deque(maxlen=size)

    def add(self, server: str, text: str) -> None:
        """This server has read or written all of `text`."""
        with self._lock:
            self._texts.append((server, text))

    def cover(self, server: str, prefix: str) -> bool:
        """True if this server has seen a text that begins with `prefix`."""
        with self._lock:
            # The newest first: a search forks from what it has just written.
            return any(at == server and t.startswith(prefix) for at, t in reversed(self._texts))
