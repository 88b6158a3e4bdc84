"""What the fault suite breaks: services, a model server and a fleet, all real processes.

Whatever of the fleet ends is started again, as an orchestrator would. The suite's own view
of the database goes through `ask`, which waits while Postgres is away.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import psycopg
import redis

from marco_search import migrations
from marco_search.local import ServiceUrls, local_services
from marco_search.local.programs import purge
from producer import Producer
from tests import embedded
from tests.faults.model import Model, model_server
from tests.silent_proxy import SilentProxy

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "MARCO_LEASE_S": "3",
    "MARCO_HEARTBEAT_S": "0.5",
    "MARCO_RUNTIME_TIMEOUT_S": "3",
    "MARCO_RUNTIME_STALL_S": "1",
    # A storm hits the same job again and again: giving up is tested apart from it.
    "MARCO_MAX_ATTEMPTS": "50",
    "MARCO_QUARANTINE_AFTER": "50",
    "MARCO_WORKER_SCHEDULER": "false",  # two schedulers do
}
"""What the fleet runs with beside its services: all else is as delivered."""
PATIENCE_S = 120.0
RESPAWN_AFTER_S = 0.3


_libc = ctypes.CDLL(None)  # loaded here: not between fork and exec
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def _end_with_the_suite() -> None:
    """In a new process: the kernel kills it when the suite ends, however that happens."""
    _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


@dataclass
class Member:
    """A place in the fleet: what runs there, and what is started when it ends."""

    name: str
    command: list[str]
    env: dict[str, str]
    process: subprocess.Popen[bytes]
    clock: Path | None = None  # its wall clock can be shifted by writing this
    starts: int = 1
    wanted: bool = True
    ended_at: float = field(default=0.0)


class Rig:
    """See `rig` below. Safe for threads."""

    def __init__(self, home: Path, urls: ServiceUrls, model: Model) -> None:
        self.home, self.urls, self.model = home, urls, model
        self.members: list[Member] = []
        self.producer = Producer(urls.database_url, urls.redis_url)
        # The fleet's way to each of its servers, which can fall silent.
        self.proxies = {
            "postgres": _proxy(urls.database_url),
            "redis": _proxy(urls.redis_url),
            "model": _proxy(model.url),
        }
        self.runtime = self.proxies["model"].url(model.url)
        self.hung: set[int] = set()  # processes that were stopped for good
        self.stops_s: list[float] = []  # how long members took to end when asked to
        self._lock = threading.Lock()
        # Not known from their environment: a worker's title is written over it.
        self._sessions: set[int] = set()

    # -- services -------------------------------------------------------------------------

    def ask(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """The rows of a statement, in a transaction of its own; waits for Postgres."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                with psycopg.connect(
                    self.urls.database_url, autocommit=True, application_name="suite"
                ) as conn:
                    done = conn.execute(query.encode(), values)
                    return done.fetchall() if done.description else []
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def redis(self) -> contextlib.closing[redis.Redis]:
        """A connection to the broker."""
        return contextlib.closing(redis.Redis.from_url(self.urls.redis_url))

    def server(self, name: str) -> embedded.Process:
        """Postgres or Redis as it runs now, once it answers."""
        wait_until(lambda: self.answers(name), f"{name} answers")
        return embedded.services(self.home)[name]

    def answers(self, name: str) -> bool:
        """Whether a service is there."""
        try:
            if name == "redis":
                with self.redis() as client:
                    return bool(client.ping())
            psycopg.connect(self.urls.database_url, connect_timeout=2).close()
            return True
        except (redis.RedisError, psycopg.OperationalError):
            return False

    @contextlib.contextmanager
    def unattended(self) -> Iterator[None]:
        """No one starts a dead service again inside the block."""
        supervisor = embedded.services(self.home)["supervisor"]
        os.kill(supervisor.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(supervisor.pid, signal.SIGCONT)

    # -- fleet ----------------------------------------------------------------------------

    def start_worker(
        self, name: str, processes: int, *, skewed: bool = False, **settings: str
    ) -> Member:
        """A worker; `skewed` ones have a wall clock that can be shifted."""
        env, clock = settings, None
        if skewed:
            clock = self.home / f"{name}.clock"
            clock.write_bytes(struct.pack("d", 0.0))
            paths = [str(ROOT / "tests" / "faults" / "skew"), str(ROOT)]
            env |= {"FAULTS_CLOCK": str(clock), "PYTHONPATH": os.pathsep.join(paths)}
        words = ["-m", "tests.faults.worker", str(processes), name]
        return self.start(name, words, env, clock)

    def start_scheduler(self, name: str) -> Member:
        """A `marco scheduler`."""
        return self.start(name, ["-m", "marco_search.cli.main", "scheduler"], {})

    def start(
        self, name: str, words: Sequence[str], env: dict[str, str], clock: Path | None = None
    ) -> Member:
        """Start a member of the fleet: Python with these words."""
        command = [sys.executable, *words]
        given = os.environ | self.environment() | {"PYTHONPATH": str(ROOT)} | env
        member = Member(name, command, given, self._spawn(name, command, given), clock)
        with self._lock:
            self.members.append(member)
        return member

    def environment(self) -> dict[str, str]:
        """The settings of the whole fleet."""
        return {
            "MARCO_HOME": str(self.home),
            "DATABASE_URL": self.proxies["postgres"].url(self.urls.database_url),
            "REDIS_URL": self.proxies["redis"].url(self.urls.redis_url),
            "MARCO_RUNTIME": self.runtime,
            **SETTINGS,
            "OPENBLAS_NUM_THREADS": "1",
        }

    def _spawn(self, name: str, command: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
        with (self.home / "logs" / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, preexec_fn=_end_with_the_suite,
            )  # fmt: skip
        self._sessions.add(process.pid)
        return process

    def attend(self) -> None:
        """Start again what has ended."""
        with self._lock:
            for member in self.members:
                if not member.wanted or member.process.poll() is None:
                    continue
                now = time.monotonic()
                if member.ended_at == 0.0:
                    member.ended_at = now
                if now - member.ended_at >= RESPAWN_AFTER_S:
                    member.ended_at, member.starts = 0.0, member.starts + 1
                    member.process = self._spawn(member.name, member.command, member.env)

    def dismiss(self, member: Member, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop a member for good; its exit code."""
        self.forget(member)
        with contextlib.suppress(ProcessLookupError):
            member.process.send_signal(number)
        asked = time.monotonic()
        try:
            code = member.process.wait(PATIENCE_S)
            self.stops_s.append(time.monotonic() - asked)
            return code
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(member.process.pid, signal.SIGKILL)

    def forget(self, member: Member) -> None:
        """Do not start this member again."""
        with self._lock:
            member.wanted = False
            self.members.remove(member)

    def processes(self) -> dict[int, str]:
        """Every live process of the fleet, children of dead members too: pid to command line."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it ended
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) in self._sessions and fields[0] not in "ZX":
                    words = (
                        (folder / "cmdline").read_text(errors="replace").replace("\0", " ").strip()
                    )
                    found[int(folder.name)] = words
        return found

    def running(self) -> list[tuple[UUID, int, int, int]]:
        """(job, generation, rounds, pid of the process that holds it) of the running jobs."""
        rows = self.ask(
            "SELECT id, lease_generation, rounds, lease_owner FROM jobs WHERE state = 'running'"
            " AND lease_expires_at > now()"
        )
        return [(i, g, r, int(owner.rpartition(":")[2])) for i, g, r, owner in rows]

    def close(self) -> None:
        """Kill whatever is left of the fleet."""
        self.producer.close()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for member in self.members:
            member.process.wait()
        for proxy in self.proxies.values():
            proxy.close()


def _proxy(url: str) -> SilentProxy:
    parts = urlsplit(url)
    assert parts.hostname and parts.port
    return SilentProxy(parts.hostname, parts.port)


@contextlib.contextmanager
def rig(*, pace_s: float = 0.1, seed: int = 1) -> Iterator[Rig]:
    """Everything but the fleet, in a new home that is deleted at the end."""
    folder = Path(tempfile.mkdtemp(prefix="marco-faults-"))
    folder.chmod(0o711)
    home = folder / "home"
    try:
        with local_services(home) as urls, model_server(pace_s, seed) as model:
            migrations.upgrade(urls.database_url)
            made = Rig(home, urls, model)
            try:
                yield made
            finally:
                made.close()
    finally:
        if home.exists():
            purge(home)
        shutil.rmtree(folder)


def wait_until(condition: Any, what: str, timeout_s: float = PATIENCE_S) -> None:
    """Wait for a condition; fails if it never comes true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.05)
