"""A `Runtime` over any backend of the frontend language: runs the fork program on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from marco_search.errors import PromptTooLong
from marco_search.runtime.base import RuntimeInfo
from marco_search.runtime.program import run_expansion
from marco_search.runtime.quoting import quoting
from marco_search.search.branches import Branch, Expansion, Message, without_room

_MAX_PROGRAMS = 64
"""Expansions run at once; each holds a thread while it waits for its children."""


class ForkRuntime:
    """Runs expansions on `backend`. `render` turns messages into the model's prompt."""

    def __init__(
        self,
        backend: Any,
        info: RuntimeInfo,
        render: Callable[[Sequence[Message]], str],
        *,
        timeout_s: float,
        api_key: str | None = None,
    ) -> None:
        """`api_key` is the server's: it is kept out of what the runtime says."""
        self.backend = backend
        self._info = info
        self._render = render
        self._timeout_s = timeout_s
        self._quoted = quoting(api_key)
        self._threads = ThreadPoolExecutor(_MAX_PROGRAMS, "fork")

    @property
    def info(self) -> RuntimeInfo:
        """The model and engine behind this runtime."""
        return self._info

    def render(self, messages: Sequence[Message]) -> str:
        """The chat prompt as text, ready for the assistant's turn."""
        return self._render(messages)

    def branch(self, expansions: Sequence[Expansion]) -> list[Branch]:
        """All branches of all expansions at once (see `Runtime.branch`)."""

        def run(expansion: Expansion) -> list[Branch]:
            found = run_expansion(self.backend, expansion, self._timeout_s)
            return [replace(b, error=b.error and self._quoted(b.error)) for b in found]

        if len(expansions) == 1:
            branches = run(expansions[0])
        else:
            branches = [b for found in self._threads.map(run, expansions) for b in found]
        if branches and all(without_room(b.error) for b in branches):
            raise PromptTooLong(str(branches[0].error).removeprefix("PromptTooLong: "))
        return branches

    def abort(self) -> None:
        """Fail all branches in flight at once, where the backend can (see `Runtime.abort`)."""
        if hasattr(self.backend, "abort"):
            self.backend.abort()

    def close(self) -> None:
        """Stop threads and the backend; what is in flight fails."""
        self.abort()
        self._threads.shutdown(wait=True)
        self.backend.shutdown()
