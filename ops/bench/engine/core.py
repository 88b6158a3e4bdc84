"""The search's own time per node: everything but the runtime."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marco_search import engine
from marco_search.engine import NullJournal
from marco_search.runtime.base import RuntimeInfo
from marco_search.runtime.reply import read_completion
from marco_search.search.branches import Branch, Expansion, Finish, Message, Segment
from ops.bench.engine import texts
from ops.bench.engine.searches import job

ROLLOUTS = 256


@dataclass
class Instant:
    """A runtime that answers from prepared branches, and counts the time it takes itself."""

    clock: Callable[[], float]
    seconds: float = 0.0

    @property
    def info(self) -> RuntimeInfo:
        """Nothing is behind it."""
        return RuntimeInfo(
            name="instant", version="0", model="instant", revision="0", context_tokens=32768
        )

    def render(self, messages: Sequence[Message]) -> str:
        """ChatML, so that the texts know where the answer begins."""
        return "".join(m.content for m in messages) + "<|im_start|>assistant\n"

    def branch(self, expansions: Sequence[Expansion]) -> list[Branch]:
        """At once."""
        began = self.clock()
        branches = []
        for expansion in expansions:
            for request in expansion.branches:
                segment = _segment(*texts.completion_of(expansion.prefix, request.seed))
                branches.append(
                    Branch(branch_id=request.branch_id, segments=(segment,), finish=Finish.STOP)
                )
        self.seconds += self.clock() - began
        return branches

    def abort(self) -> None:
        """Nothing is ever in flight."""

    def close(self) -> None:
        """Nothing to close."""


_segments: dict[tuple[int, int], Segment] = {}


def _segment(variant: int, steps: int) -> Segment:
    key = (variant, steps)
    if key not in _segments:
        text, _, data = texts.completion(variant, steps)
        answer = json.loads(data + b"}}")
        _segments[key] = Segment(text, read_completion(answer["text"], answer["meta_info"]).tokens)
    return _segments[key]


def milliseconds_per_node(journal: Any = None, seed: int = 0) -> tuple[float, int]:
    """(milliseconds, nodes) of one search of 256 rollouts, the runtime's time left out.

    Without a journal the search never waits: then it is the thread's own time on the
    processor, which other processes do not change. With one it is the time on the clock.
    """
    clock = time.perf_counter if journal else time.thread_time
    runtime = Instant(clock)
    work = job(seed, "step", ROLLOUTS)
    fixed = engine.make_plan(work, runtime)
    began = clock()
    done = engine.run_search(work, fixed, runtime, journal or NullJournal())
    seconds = clock() - began - runtime.seconds
    nodes = len(done.search.tree.nodes) - 1
    return 1000 * seconds / nodes, nodes


def persisted(home: Path) -> float:
    """The same with every round committed to Postgres: the embedded one, started for this."""
    from marco_search import migrations
    from marco_search.local import local_services
    from marco_search.store.db import Database
    from marco_search.store.queue import claims, jobs
    from marco_search.store.queue.leases import Lease, Worker
    from worker.journal import PostgresJournal
    from worker.lease import Heartbeat

    worker = Worker(name="bench", host="bench", pid=0)
    with local_services(home) as services:
        migrations.upgrade(services.database_url)
        database = Database(services.database_url, application="marco bench", connections=2)
        try:
            found = []
            for seed in range(3):
                with database.transaction() as conn:
                    stored = jobs.insert(conn, [job(seed, "step", ROLLOUTS)], tenant="bench")[0]
                with database.transaction() as conn:
                    claim = claims.claim(conn, stored.id, worker, lease_s=600)
                    assert claim is not None
                    lease = Lease(job_id=stored.id, generation=claim.generation, seconds=600)
                    claims.begin(conn, lease, worker, None, None)
                with Heartbeat(database, lease, every_s=60) as heartbeat:
                    journal = PostgresJournal(database, heartbeat, model=("bench", "0"), seconds=0)
                    found.append(milliseconds_per_node(journal, seed)[0])
            return min(found)
        finally:
            database.close()
