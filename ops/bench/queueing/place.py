"""Where the queue is measured: services in a new home, and workers as processes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from redis import Redis

from marco_search import migrations
from marco_search.local import ServiceUrls, local_services
from marco_search.local.layout import Layout

_ROOT = Path(__file__).resolve().parents[3]
_PATIENCE_S = 300.0


_libc = ctypes.CDLL(None)  # loaded here: not between fork and exec
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def _end_with_us() -> None:
    """In a new process: the kernel kills it when this one ends, however that happens."""
    _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Place:
    """Running services. `log` is Postgres' own."""

    home: Path
    urls: ServiceUrls

    @property
    def log(self) -> Path:
        """What Postgres has to say."""
        return Layout(self.home).log("postgres")

    def environment(self) -> dict[str, str]:
        """For processes that are to use these services."""
        urls = {"DATABASE_URL": self.urls.database_url, "REDIS_URL": self.urls.redis_url}
        here = {"MARCO_HOME": str(self.home), "PYTHONPATH": str(_ROOT)}
        # Celery warns root of a danger that needs pickle, which nothing here reads.
        quiet = {"MARCO_LOG_LEVEL": "WARNING", "PYTHONWARNINGS": "ignore"}
        return os.environ | urls | here | quiet


@contextlib.contextmanager
def place() -> Iterator[Place]:
    """Services with the current schema, stopped and deleted at the end."""
    folder = Path(tempfile.mkdtemp(prefix="marco-bench-"))
    folder.chmod(0o711)
    home = folder / "home"
    try:
        with local_services(home) as urls:
            migrations.upgrade(urls.database_url)
            yield Place(home, urls)
    finally:
        if home.exists():
            Layout(home).purge()
        shutil.rmtree(folder)


@contextlib.contextmanager
def running(here: Place, command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A worker, from when it waits for messages."""
    with Redis.from_url(here.urls.redis_url) as client:
        before = _waiting(client)
        process = subprocess.Popen(
            command, env=here.environment(), cwd=_ROOT, stdin=subprocess.DEVNULL,
            start_new_session=True, preexec_fn=_end_with_us,
        )  # fmt: skip
        try:
            until(lambda: _waiting(client) > before or process.poll() is not None)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _waiting(client: Redis) -> int:
    """Connections that wait in BRPOP."""
    return sum(c["cmd"] == "brpop" for c in client.client_list())


def until(condition: Callable[[], bool], every_s: float = 0.02) -> None:
    """Wait for a condition. Raises TimeoutError if it never comes true."""
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("waited in vain")
        time.sleep(every_s)


def cpu_s(session: int) -> float:
    """Seconds of processor that the living processes of a session have used."""
    ticks = 0
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended
            fields = file.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
