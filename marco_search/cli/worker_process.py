"""A worker in a process of its own, for as long as a block runs: what the demo starts.

It is a `marco worker` like any other. It never outlives the process that started it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from marco_search.errors import LocalServiceFailed

_ROOT = Path(__file__).resolve().parents[2]
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_GRACE_S = 10.0
_LOG_LINES = 8


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    """A running worker and its log file."""

    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Raises LocalServiceFailed with the end of the log if the worker has ended."""
        code = self.process.poll()
        if code is not None:
            lines = self.log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
            said = "".join(f"\n  {line}" for line in lines)
            raise LocalServiceFailed(
                f"the worker ended with exit status {code}; its log is {self.log}{said}"
            )


@contextlib.contextmanager
def worker_process(processes: int, home: Path) -> Iterator[WorkerProcess]:
    """A worker that runs `processes` jobs at once. It is gone when the block is left."""
    log = home.absolute() / "logs" / "worker.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "marco_search.cli.main", "worker", "-c", str(processes)]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--name", f"demo-{os.getpid()}"],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=_environment(home),
            start_new_session=True,  # Ctrl-C reaches it through us, once
            preexec_fn=_end_with_parent,
        )
    finished = False
    try:
        yield WorkerProcess(process, log)
        finished = True
    finally:
        # Without work left a worker ends at once; interrupted, it should not finish its jobs.
        _stop(process, signal.SIGTERM if finished else signal.SIGQUIT)


def _environment(home: Path) -> dict[str, str]:
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "MARCO_HOME": str(home.absolute())}


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


def _stop(process: subprocess.Popen[bytes], first: signal.Signals) -> None:
    for number in (first, signal.SIGQUIT):
        if process.poll() is None:
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_S)
    # Its children are in its process group. What is left of it is killed.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
