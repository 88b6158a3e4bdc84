"""A real worker, but for one thing: `python -m tests.faults.worker PROCESSES NAME`.

A question that holds POISON kills the process that searches it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from marco_search import settings
from marco_search.runtime import open_runtime
from marco_search.runtime.base import Runtime
from marco_search.search.branches import Branch, Expansion
from marco_search.settings import Settings
from worker import main

POISON = "POISON"


class Poisonable:
    """A runtime that some prompts are fatal to."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def __getattr__(self, name: str) -> object:
        return getattr(self._runtime, name)

    def branch(self, expansions: Sequence[Expansion]) -> list[Branch]:
        if any(POISON in e.prefix for e in expansions):
            os.kill(os.getpid(), signal.SIGKILL)
        return self._runtime.branch(expansions)


def _open(given: Settings) -> Runtime:
    return Poisonable(open_runtime(given))  # type: ignore[return-value]


if __name__ == "__main__":
    processes, name = int(sys.argv[1]), sys.argv[2]
    sys.exit(main.run(settings.load(), processes=processes, name=name, open_runtime=_open))
