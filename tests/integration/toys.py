"""What the integration tests of store, producer and worker share."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from marco_search.broker import Publisher
from marco_search.jobs import Job
from marco_search.kinds import ReasoningJob
from marco_search.runtime.base import Runtime
from marco_search.search.actions import Action
from marco_search.search.branches import Branch, Expansion
from marco_search.search.config import SearchConfig
from marco_search.search.mcts import Search
from marco_search.search.tree import Round
from marco_search.settings import Settings
from marco_search.store.db import Conn, Database
from marco_search.store.queue import claims, jobs, reclaim
from marco_search.store.queue.claims import Claim
from marco_search.store.queue.leases import Lease, Worker
from marco_search.store.queue.states import JobState
from tests.toy import PROMPT, ToyRuntime, answer_of
from worker.runner import Runner
from worker.sweep import Sweep

WORKER = Worker(name="test", host="test", pid=1)


def open_database(url: str) -> closing[Database]:
    return closing(Database(url, application="test"))


def settings_for(database_url: str, redis_url: str, **more: Any) -> Settings:
    given: dict[str, Any] = {"DATABASE_URL": database_url, "REDIS_URL": redis_url}
    return Settings(**given, **{f"MARCO_{name.upper()}": value for name, value in more.items()})


def question(text: str = "What is 1 + 1?", **more: Any) -> ReasoningJob:
    options = {"strategy": "step", "rollouts": 12, "early_stop": False, "max_new_tokens": 200}
    return ReasoningJob(question=text, options=options | more.pop("options", {}), **more)


def insert(database: Database, *jobs_: Job) -> list[jobs.StoredJob]:
    with database.transaction() as conn:
        return jobs.insert(conn, jobs_, tenant="default")


def claim(
    database: Database, job_id: Any, lease_s: float = 60, worker: Worker = WORKER
) -> tuple[Claim, Lease] | None:
    """Claim and begin, as the runner does."""
    with database.transaction() as conn:
        reclaim.reclaim(conn, quarantine_after=99, job_id=job_id)
        claimed = claims.claim(conn, job_id, worker, lease_s=lease_s)
        if claimed is None:
            return None
        lease = Lease(job_id=job_id, generation=claimed.generation, seconds=lease_s)
        claims.begin(conn, lease, worker, ToyRuntime().info, None)
        return claimed, lease


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


def runner(settings: Settings, database: Database, runtime: Runtime, name: str = "test") -> Runner:
    return Runner(settings, database, lambda: runtime, Worker(name=name, host="h", pid=1))


def sweep(database_url: str, redis_url: str, **more: Any) -> int:
    """One sweep; the number of jobs published."""
    settings = settings_for(database_url, redis_url, **more)
    database = Database(database_url, application="test sweep", connections=1)
    one = Sweep(settings, database, Publisher(redis_url, settings.queue), WORKER)
    with closing(one):
        return one.once()


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
        plain[variable] = value.get_secret_value() if secret else str(value)
    return os.environ | plain


def marco(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The installed command on the database at `url`."""
    program = Path(sys.executable).with_name("marco")
    return subprocess.run(
        [program, *arguments], env=os.environ | {"DATABASE_URL": url}, check=False, timeout=120,
        capture_output=True, text=True,
    )  # fmt: skip
