"""What the benchmarks share: scratch services, worker processes, timing, and the report."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis import Redis

from marco_search import migrations, settings
from marco_search.local import ServiceUrls, local_services
from marco_search.local.programs import purge
from marco_search.store.db import Database
from marco_search.store.queue.leases import Worker
from ops import environment

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 300.0
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
WORKER = Worker(name="bench", host="bench", pid=0)


@dataclass(frozen=True, slots=True)
class Services:
    """Running Postgres and Redis with the current schema."""

    home: Path
    urls: ServiceUrls

    @contextlib.contextmanager
    def database(self, connections: int = 2) -> Iterator[Database]:
        """Connections to Postgres, as a worker's."""
        opened = Database(
            self.urls.database_url,
            application="marco bench",
            connections=connections,
            planned_once=True,
        )
        with contextlib.closing(opened):
            yield opened


@contextlib.contextmanager
def scratch_services(home: Path | None = None, *, keep: bool = False) -> Iterator[Services]:
    """Services in `home`, or in a new folder. Stopped and, unless `keep`, deleted at the end."""
    with tempfile.TemporaryDirectory(prefix="marco-bench-") as folder:
        Path(folder).chmod(0o711)  # the servers' own account must be able to enter
        home = home or Path(folder) / "home"
        try:
            with local_services(home) as urls:
                migrations.upgrade(urls.database_url)
                yield Services(home, urls)
        finally:
            if not keep:
                purge(home)


@contextlib.contextmanager
def worker_process(services: Services, command: Sequence[str]) -> Iterator[int]:
    """A Celery worker, as soon as it waits for messages. Yields its process id."""
    env = os.environ | {
        "DATABASE_URL": services.urls.database_url,
        "REDIS_URL": services.urls.redis_url,
        "MARCO_HOME": str(services.home),
        "PYTHONPATH": str(ROOT),
        "MARCO_LOG_LEVEL": "WARNING",
        "PYTHONWARNINGS": "ignore",
    }
    with Redis.from_url(services.urls.redis_url) as client:

        def waiting() -> int:
            return sum(c["cmd"] == "brpop" for c in client.client_list())

        before = waiting()
        with environment.running(command, env=env, cwd=ROOT) as process:
            wait_until(lambda: waiting() > before or process.poll() is not None)
            yield process.pid


def wait_until(condition: Callable[[], bool], every_s: float = 0.02) -> None:
    """Wait for a condition. Raises TimeoutError after TIMEOUT_S."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not true after {TIMEOUT_S:.0f} s")
        time.sleep(every_s)


def seconds(action: Callable[[], object]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of the sorted values lies before."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def processes() -> Iterator[tuple[int, list[int]]]:
    """Process id of each living process, and some of its figures.

    [0] is its parent, [2] its session, [10:12] its ticks, [12:14] those of its ended children.
    """
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # the process has ended
            fields = file.read_text().rpartition(")")[2].split()
            yield int(file.parent.name), list(map(int, fields[1:15]))


def session_cpu_s(session: int) -> float:
    """Processor seconds used by the living processes of a session."""
    return sum(sum(stat[10:12]) for _, stat in processes() if stat[2] == session) / TICKS_A_SECOND


def report(name: str, found: Mapping[str, Any], goals: Mapping[str, str] | None = None) -> None:
    """Print the figures with their goals and write MARCO_HOME/bench/NAME.json."""
    file = settings.load().home / "bench" / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=2) + "\n")
    for key, value in found.items():
        shown = f"{value:,.3f}" if isinstance(value, float) else str(value)
        print(f"{key:34} {shown:>14}  {(goals or {}).get(key, '')}".rstrip())
    print(f"Written to {file}")
