"""What the integration tests of store, producer and worker share."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from marco_search.jobs import Job
from marco_search.kinds import ReasoningJob
from marco_search.runtime.base import Runtime, RuntimeInfo, Training
from marco_search.search.actions import Action
from marco_search.search.branches import Branch, Expansion
from marco_search.search.config import SearchConfig
from marco_search.search.mcts import Search
from marco_search.search.tree import Round
from marco_search.settings import Settings
from marco_search.store.db import Conn, Database
from marco_search.store.queue import jobs, leases, recovery, scheduling
from marco_search.store.queue.leases import Claim, Lease, Worker
from marco_search.store.queue.states import JobState
from tests.toy import PROMPT, ToyRuntime, answer_of
from worker.runner import Runner
from worker.scheduler import STALE_S, Scheduler

ROOT = Path(__file__).parents[2]
WORKER = Worker(name="test", host="test", pid=1)


class FineTuned(ToyRuntime):
    """The toy model with other weights, trained from it on a data set."""

    @property
    def info(self) -> RuntimeInfo:
        training = Training(
            parent_model="toy-marco-o1", parent_revision="0" * 64, manifests=["d" * 64],
            config_sha256="c" * 64, method="sft", seed=3,
        )  # fmt: skip
        return replace(super().info, revision="1" * 64, training=training)


# Each process of the tests has its own, below those that the kernel gives away: nobody else takes
# one between the look and its use.
_FIRST_PORT = 20_000 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 8 * 1_500
_PORTS = cycle(range(_FIRST_PORT, _FIRST_PORT + 1_500))


def free_port() -> int:
    """A loopback port that nothing listens at."""
    for port in _PORTS:
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("the ports never end")


def open_database(url: str) -> closing[Database]:
    return closing(Database(url, application="test"))


def settings_for(database_url: str, redis_url: str, **more: Any) -> Settings:
    given: dict[str, Any] = {"DATABASE_URL": database_url, "REDIS_URL": redis_url}
    return Settings(**given, **{f"MARCO_{name.upper()}": value for name, value in more.items()})


def question(text: str = "What is 1 + 1?", **more: Any) -> ReasoningJob:
    options = {"strategy": "step", "rollouts": 12, "early_stop": False, "max_new_tokens": 200}
    return ReasoningJob(question=text, options=options | more.pop("options", {}), **more)


def insert(database: Database, *jobs_: Job) -> list[jobs.JobHandle]:
    with database.transaction() as conn:
        return jobs.insert(conn, jobs_, tenant="default")


def claim(
    database: Database, job_id: Any, lease_s: float = 60, worker: Worker = WORKER
) -> tuple[Claim, Lease] | None:
    """Claim this job, taking it back if its lease ran out, and begin it; None if it is not due."""
    with database.transaction() as conn:
        recovery.reclaim(conn, quarantine_after=99)
        conn.execute(
            "UPDATE jobs SET published_at = now() WHERE id = %s AND run_after <= now()", [job_id]
        )
        _delay_others(conn, job_id, _A_CENTURY)
        claimed = leases.claim_next(conn, worker, lease_s=lease_s)
        _delay_others(conn, job_id, -_A_CENTURY)
        if claimed is None:
            return None
        leases.begin(conn, claimed.lease, worker, ToyRuntime().info, None)
        return claimed, claimed.lease


_A_CENTURY = 36_525  # days: jobs of a stored database were due long ago


@contextmanager
def alone(database: Database, job_id: Any) -> Iterator[None]:
    """No other queued job is due inside the block."""
    with database.transaction() as conn:
        _delay_others(conn, job_id, _A_CENTURY)
    try:
        yield
    finally:
        with database.transaction() as conn:
            _delay_others(conn, job_id, -_A_CENTURY)


def _delay_others(conn: Conn, job_id: Any, days: int) -> None:
    conn.execute(
        "UPDATE jobs SET run_after = run_after + make_interval(days => %s)"
        " WHERE state = 'queued' AND id <> %s",
        [days, job_id],
    )


def schedule(database: Database, quarantine_after: int = 99) -> None:
    """What a scheduler does in the database: take jobs back, and mark due ones as published."""
    with database.transaction() as conn:
        recovery.reclaim(conn, quarantine_after=quarantine_after)
        scheduling.due(conn)


def rounds_of(seed: int = 1, rollouts: int = 24) -> tuple[Search, list[Round]]:
    """A finished toy search and its rounds."""
    config = SearchConfig(
        strategy="test", action=Action.STEP, rollouts=rollouts, seed=seed, early_stop=False,
        parallel=4, max_new_tokens=200,
    )  # fmt: skip
    search, runtime, rounds = Search(config, PROMPT, answer_of), ToyRuntime(), []
    while expansions := search.ask():
        done = search.tell(runtime.branch(expansions))
        assert done is not None
        rounds.append(done)
    return search, rounds


def runner(
    settings: Settings, database: Database, runtime: Runtime, name: str = "test", **more: Any
) -> Runner:
    who = Worker(name=name, host="h", pid=1)
    return Runner(settings, database, lambda: runtime, who, retry_s=0.01, **more)


def tick(database_url: str, redis_url: str, stale_s: float = STALE_S, **more: Any) -> int:
    """One tick of a scheduler; the number of jobs published."""
    settings = settings_for(database_url, redis_url, **more)
    with closing(Scheduler(settings, WORKER, stale_s=stale_s)) as one:
        return one.tick()


def run_job(one: Runner, database: Database, job_id: Any) -> None:
    """Run this job, once a scheduler has taken it back or published it, as if it were alone."""
    schedule(database, quarantine_after=2)
    with alone(database, job_id):
        one.run_next()


def state(conn: Conn, job_id: Any) -> JobState:
    return jobs.states(conn, [job_id])[job_id]


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.02)


class Interrupted(ToyRuntime):
    """A toy runtime that does something before its nth round; 0 is the first."""

    def __init__(self, before: int, act: Callable[[], None], **more: Any) -> None:
        super().__init__(**more)
        self.rounds = 0
        self._before = before
        self._act = act

    def branch(self, expansions: Sequence[Expansion]) -> list[Branch]:
        self.rounds += 1
        if self.rounds == self._before + 1:
            self._act()
        return super().branch(expansions)


def environment(settings: Settings) -> dict[str, str]:
    """The environment that gives a process these settings."""
    plain = {}
    for name, value in settings.model_dump(exclude_defaults=True).items():
        secret = isinstance(value, SecretStr)
        variable = str(Settings.model_fields[name].validation_alias)
        text = json.dumps(value) if isinstance(value, dict) else str(value)
        if isinstance(value, tuple):
            text = ",".join(map(str, value))
        plain[variable] = value.get_secret_value() if secret else text
    return os.environ | plain


@contextmanager
def process(
    command: list[str], env: dict[str, str], log: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs inside the block; its log may go to a file."""
    with log.open("wb") if log else nullcontext() as stderr:
        child = subprocess.Popen(command, cwd=ROOT, env=env, stderr=stderr)
    try:
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(30)
        finally:
            child.kill()


def marco(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The installed command on the database at `url`."""
    program = Path(sys.executable).with_name("marco")
    return subprocess.run(
        [program, *arguments], env=os.environ | {"DATABASE_URL": url}, check=False, timeout=120,
        capture_output=True, text=True,
    )  # fmt: skip
