"""A `Runtime` over any backend of the frontend language: runs the fork program on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from marco_search.errors import PromptTooLong
from marco_search.runtime.base import RuntimeInfo, quoting
from marco_search.runtime.program import run_expansion
from marco_search.search.branches import Branch, Expansion, Message, without_room

_MAX_PROGRAMS = 64
"""Expansions run at once; each holds a thread while it waits for its children."""


class ForkRuntime:
    """Runs expansions on `backend`, which has `abort` and `shutdown` of its own."""

    def __init__(
        self,
        backend: Any,
        info: RuntimeInfo,
        render: Callable[[Sequence[Message]], str],
        *,
        timeout_s: float,
        api_key: str | None = None,
    ) -> None:
        """`timeout_s` is for one expansion; `api_key`, the server's, is kept out of errors."""
        self.backend = backend
        self.info = info
        self.render = render
        self._timeout_s = timeout_s
        self._quoted = quoting(api_key)
        self._threads = ThreadPoolExecutor(_MAX_PROGRAMS, "fork")

    def branch(self, expansions: Sequence[Expansion]) -> list[Branch]:
        """All branches of all expansions at once (see `Runtime.branch`)."""
        # A single one needs no thread of its own.
        run = map if len(expansions) == 1 else self._threads.map
        branches = [b for found in run(self._run, expansions) for b in found]
        if branches and all(without_room(b.error) for b in branches):
            raise PromptTooLong(str(branches[0].error).removeprefix("PromptTooLong: "))
        return branches

    def _run(self, expansion: Expansion) -> list[Branch]:
        found = run_expansion(self.backend, expansion, self._timeout_s)
        return [replace(b, error=b.error and self._quoted(b.error)) for b in found]

    def abort(self) -> None:
        """Fail all branches in flight at once (see `Runtime.abort`)."""
        self.backend.abort()

    def close(self) -> None:
        """Stop threads and the backend; what is in flight fails."""
        self.abort()
        self._threads.shutdown(wait=True)
        self.backend.shutdown()
