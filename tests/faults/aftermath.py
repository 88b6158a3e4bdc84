"""After a storm: nothing leaked, and interrupted trees are those of uninterrupted searches."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from random import Random
from uuid import UUID

from marco_search import engine
from marco_search.kinds import parse_job
from marco_search.runtime import open_runtime
from marco_search.search.tree import Rollout
from marco_search.settings import Settings
from marco_search.store.db import Database
from marco_search.store.trail import trail
from tests.faults.rig import SETTINGS, Rig, wait_until
from worker.watchdog import SILENT_S

# A worker process at rest: main thread, its pool of connections, what the runtime keeps.
MOST_THREADS = 16
CONNECTIONS_A_CHILD = 2  # worker/process.py: the search and its heartbeat
_OWN = ("suite", "marco producer")


def leaks_at_rest(rig: Rig) -> list[str]:
    """What the fleet holds although no job runs, and does not let go of."""
    with contextlib.suppress(AssertionError):
        hung_for_s = float(SETTINGS["MARCO_LEASE_S"]) + SILENT_S
        wait_until(lambda: not _hung(rig), "what hangs was killed", hung_for_s + 10)
        wait_until(lambda: not _held_at_rest(rig), "nothing is held", 10)
    return _held_at_rest(rig)


def _hung(rig: Rig) -> set[int]:
    return rig.hung & rig.processes().keys()


def _held_at_rest(rig: Rig) -> list[str]:
    wrong = []
    live = rig.processes()
    if _hung(rig):
        wrong.append(f"processes that hang: {_hung(rig)}")
    mains = {m.process.pid for m in rig.members}
    orphans = {p: w for p, w in live.items() if _parent(p) not in mains and p not in mains}
    if orphans:
        wrong.append(f"children without their worker: {orphans}")
    threads = {pid: _threads(pid) for pid in live}
    if max(threads.values(), default=0) > MOST_THREADS:
        wrong.append(f"threads by process: {threads}")
    children = len(live.keys() - mains)
    held = Counter(_connections(rig))
    if held["marco worker"] > CONNECTIONS_A_CHILD * children:
        wrong.append(f"{children} worker processes hold {held['marco worker']} connections")
    return wrong


def leaks_after_stop(rig: Rig) -> list[str]:
    """Stop the fleet; what does not end well, or is left of it."""
    wrong = []
    for member in list(rig.members):
        code = rig.dismiss(member)
        if code != 0:
            wrong.append(f"{member.name} ended with {code}")
    with contextlib.suppress(AssertionError):
        wait_until(lambda: not rig.processes(), "all processes are gone", 10)
        wait_until(lambda: not set(_connections(rig)) - set(_OWN), "no connection", 10)
    if rig.processes():
        wrong.append(f"processes that are left: {rig.processes()}")
    left = [name for name in _connections(rig) if name not in _OWN]
    if left:
        wrong.append(f"connections to Postgres that are left: {left}")
    rig.producer.close()
    with rig.redis() as client:
        clients = [c["addr"] for c in client.client_list()]
    if len(clients) > 1:
        wrong.append(f"connections to Redis that are left: {clients}")
    return wrong


def _connections(rig: Rig) -> list[str]:
    rows = rig.ask("SELECT application_name FROM pg_stat_activity WHERE datname = 'marco'")
    return [name for (name,) in rows]


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _threads(pid: int) -> int:
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Threads:"))
    return 0


def wrong_trees(rig: Rig, jobs: Collection[UUID], sample: int) -> tuple[list[UUID], int]:
    """(jobs whose tree is not that of an uninterrupted search, jobs compared).

    Of the successes among `jobs` without failed branches: those with most attempts, then any.
    """
    rows = rig.ask(
        "SELECT id FROM jobs WHERE state = 'succeeded' AND NOT EXISTS (SELECT FROM rollouts AS r"
        " WHERE r.job_id = id AND r.finish = 'failed') AND id = ANY (%s)"
        " ORDER BY attempts DESC, id",
        list(jobs),
    )
    ids = [job for (job,) in rows]
    chosen = ids[: sample // 2]
    rest = ids[len(chosen) :]
    chosen += Random(sample).sample(rest, min(len(rest), sample - len(chosen)))
    runtime = open_runtime(Settings.model_validate({"MARCO_RUNTIME": rig.runtime}))
    database = Database(rig.urls.database_url, application="suite", connections=1)
    try:
        wrong = []
        for job_id in chosen:
            (payload, plan), *_ = rig.ask("SELECT payload, plan FROM jobs WHERE id = %s", job_id)
            fixed = engine.SearchPlan.from_json(plan)
            done = engine.run_search(parse_job(payload), fixed, runtime, engine.Journal())
            with database.transaction() as conn:
                nodes, rollouts = trail.load(conn, job_id)
            tree = done.search.tree
            same = nodes == tree.nodes[1:] and [*map(_timeless, rollouts)] == [
                *map(_timeless, tree.rollouts)
            ]
            if not same:
                wrong.append(job_id)
        return wrong, len(chosen)
    finally:
        runtime.close()
        database.close()


def _timeless(rollout: Rollout) -> Rollout:
    """Without what depends on speed and on what a cache happened to hold."""
    return replace(rollout, seconds=0.0, cached_tokens=0)
