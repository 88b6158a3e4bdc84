"""How fast a search's rounds are written: nodes a second by COPY, and with all around it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from uuid import UUID

from marco_search import engine
from marco_search.search.budgets import StopReason
from marco_search.search.tree import Round
from marco_search.store.db import Database
from marco_search.store.queue import claims, jobs
from marco_search.store.queue.leases import Lease, Worker
from marco_search.store.trail import trail
from ops.bench.engine.core import Instant
from ops.bench.engine.searches import job

_WORKER = Worker(name="bench", host="bench", pid=0)
ROLLOUTS, SEARCHES = 256, 6


class _Rounds:
    """A journal that keeps the rounds in a list."""

    def __init__(self) -> None:
        self.kept: list[Round] = []

    def load(self) -> engine.StoredRounds:
        return engine.StoredRounds()

    def append(self, kept: Round, texts: Mapping[int, str]) -> None:
        self.kept.append(kept)

    def should_stop(self) -> StopReason | None:
        return None


def rounds(seed: int, rollouts: int = ROLLOUTS) -> list[Round]:
    """The rounds of a search with texts as long as a word problem's."""
    runtime, journal = Instant(time.perf_counter), _Rounds()
    work = job(seed, "step", rollouts)
    engine.run_search(work, engine.make_plan(work, runtime), runtime, journal)
    return journal.kept


def claimed(database: Database, seed: int) -> Lease:
    """A job of one's own, claimed."""
    with database.transaction() as conn:
        stored = jobs.insert(conn, [job(seed, "step", ROLLOUTS)], tenant="bench")[0]
    return _claim(database, stored.id)


def _claim(database: Database, job_id: UUID) -> Lease:
    with database.transaction() as conn:
        claim = claims.claim(conn, job_id, _WORKER, lease_s=600)
        assert claim is not None, "nobody else takes it"
        lease = Lease(job_id=job_id, generation=claim.generation, seconds=600)
        claims.begin(conn, lease, _WORKER, None, None)
    return lease


def measure(database: Database) -> dict[str, float]:
    """Nodes a second: COPY of a search's nodes alone; with the job's row, rollouts, log and
    commit (`trail.append`) for a whole search at once and round by round.

    By the clock the best search counts; by the processor's time of this process, their sum.
    """
    searches = [rounds(seed) for seed in range(SEARCHES)]
    whole = [[merged(kept)] for kept in searches]
    nodes = sum(len(r.nodes) for kept in searches for r in kept)
    tokens = sum(len(n.tokens) for kept in searches for r in kept for n in r.nodes)
    _timed(database, whole, _copied)  # connections and tables are warm after it
    copied, copied_cpu = _timed(database, whole, _copied)
    appended, appended_cpu = _timed(database, whole, _appended)
    small, small_cpu = _timed(database, searches, _appended)
    return {
        "copy_nodes_per_s": copied,
        "copy_nodes_per_client_cpu_s": nodes / copied_cpu,
        "append_nodes_per_s": appended,
        "append_nodes_per_client_cpu_s": nodes / appended_cpu,
        "rounds_nodes_per_s": small,
        "rounds_nodes_per_client_cpu_s": nodes / small_cpu,
        "copy_tokens_per_node": tokens / nodes,
        "copy_nodes_per_round": nodes / sum(map(len, searches)),
    }


def merged(kept: list[Round]) -> Round:
    """All rounds of a search as one."""
    return Round(
        number=1,
        nodes=tuple(n for r in kept for n in r.nodes),
        rollouts=tuple(o for r in kept for o in r.rollouts),
    )


def _timed(
    database: Database, searches: list[list[Round]], write: Callable[[Database, Lease, Round], None]
) -> tuple[float, float]:
    """(nodes a second of the best search, seconds of processor of all)."""
    best, cpu = 0.0, 0.0
    for seed, kept in enumerate(searches):
        lease = claimed(database, seed)
        began, cpu_began = time.perf_counter(), time.process_time()
        for done in kept:
            write(database, lease, done)
        cpu += time.process_time() - cpu_began
        seconds = time.perf_counter() - began
        best = max(best, sum(len(r.nodes) for r in kept) / seconds)
    return best, cpu


def _copied(database: Database, lease: Lease, kept: Round) -> None:
    with database.transaction() as conn:
        trail.copy_nodes(conn, lease, kept.nodes)


def _appended(database: Database, lease: Lease, kept: Round) -> None:
    with database.transaction() as conn:
        trail.append(conn, lease, kept, seconds=0.0)
