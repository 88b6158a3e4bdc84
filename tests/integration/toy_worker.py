"""A real worker, Celery and all, whose model is the toy: `python -m ... PROCESSES DELAY_S`.

`DELAY_S` is how long each round takes, so that a test can reach into a running job.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from marco_search import settings
from marco_search.runtime.base import RuntimeInfo
from marco_search.search.branches import Branch, Expansion
from tests.toy import ToyRuntime
from worker import main, watchdog

DEADLY = "What kills a worker?"


class SlowToy(ToyRuntime):
    """Each round takes some time, and one question its process. TOY_REVISION: its weights."""

    @property
    def info(self) -> RuntimeInfo:
        known = super().info
        return replace(known, revision=os.environ.get("TOY_REVISION", known.revision))

    def branch(self, expansions: Sequence[Expansion]) -> list[Branch]:
        time.sleep(float(sys.argv[2]))
        if any(DEADLY in expansion.prefix for expansion in expansions):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().branch(expansions)


if __name__ == "__main__":
    silent_s = float(os.environ.get("TOY_SILENT_S", watchdog.SILENT_S))
    code = main.run(
        settings.load(),
        processes=int(sys.argv[1]),
        open_runtime=lambda _: SlowToy(),
        silent_s=silent_s,
    )
    sys.exit(code)
