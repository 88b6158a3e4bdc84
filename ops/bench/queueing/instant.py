"""A real worker whose model answers at once: `python -m ops.bench.queueing.instant PROCESSES`.

What a job takes there is what the queue takes.
"""

from __future__ import annotations

import sys
import time

from marco_search import settings
from marco_search.runtime.base import Runtime
from marco_search.settings import Settings
from ops.bench.engine.core import Instant
from worker import main, process


def _open(_: Settings) -> Runtime:
    return Instant(time.perf_counter)


def command(processes: int) -> list[str]:
    """The command of such a worker."""
    return [sys.executable, "-m", __spec__.name, str(processes)]


if __name__ == "__main__":
    process.open_runtime = _open  # type: ignore[assignment, attr-defined]
    sys.exit(main.run(settings.load(), processes=int(sys.argv[1]), name="bench"))
