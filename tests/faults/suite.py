"""The fault suite from end to end: `make test-faults`, and a short form in `make test`.

One home, one after the other: a storm; the window in which Redis loses messages, beside plain
Celery; a poison job; a storm on the pocket model. Then the database, the chain, the trees and
what is left of processes and connections are looked at.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from statistics import median, quantiles
from typing import Any

from marco_search.store.seal.verification import verify_all
from producer import JobHandle
from tests.faults import aftermath, checks, window
from tests.faults.kinds import FAULTS
from tests.faults.rig import SETTINGS, Member, Rig, rig, wait_until
from tests.faults.storm import Storm, job, rage

Say = Callable[[str], None]
_WINDOW, _POISON, _POCKET, _SILENT = (
    100_000,
    200_000,
    300_000,
    400_000,
)  # first numbers of their jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much of everything."""

    jobs: int  # in the storm, at least
    faults: dict[str, int]
    pause_s: float  # between two faults, at most
    redis_down_s: float
    postgres_down_s: float
    window: int  # workers stopped in the window
    plain_window: int  # the same of plain Celery; 0: not compared
    pocket_jobs: int
    pocket_kills: int
    trees: int  # compared with uninterrupted ones


SHORT = Scale(
    jobs=40, faults=dict.fromkeys(FAULTS, 1), pause_s=0.5, redis_down_s=2.0,
    postgres_down_s=2.0, window=2, plain_window=0, pocket_jobs=2, pocket_kills=1, trees=8,
)  # fmt: skip

LONG = Scale(
    jobs=500,
    faults=dict.fromkeys(FAULTS, 3)
    | {"kill_child": 10, "kill_worker": 6, "kill_main": 4, "kill_scheduler": 5, "stop_child": 6}
    | {"redis_down": 1, "postgres_down": 1, "restart_in_copy": 3},
    pause_s=3.0, redis_down_s=60.0, postgres_down_s=30.0, window=10, plain_window=10,
    pocket_jobs=12, pocket_kills=6, trees=60,
)  # fmt: skip


def run(scale: Scale, *, seed: int, say: Say = lambda _: None) -> dict[str, Any]:
    """Run all of it; the figures. Nothing is asserted here but that it ends."""
    began = time.monotonic()

    def phase(name: str) -> None:
        say(f"{time.monotonic() - began:6.1f} s  {name}")

    with rig(seed=seed) as made:
        made.start_scheduler("scheduler-a")
        made.start_scheduler("scheduler-b")
        workers = [made.start_worker("worker-a", 2), made.start_worker("worker-b", 2, skewed=True)]
        phase("the storm")
        storm = _storm(made, scale, seed)
        leaks = aftermath.leaks_at_rest(made)
        for member in workers:
            made.dismiss(member)
        phase("the window between BRPOP and the worker's note")
        ours, fresh = window.marco_search(made, scale.window, _WINDOW)
        plain = window.plain_celery(made, scale.plain_window) if scale.plain_window else None
        phase("a stop while everything is silent")
        interrupted = _stop_in_silence(made, fresh)
        phase("a poison job")
        poison = _poison(made, interrupted)
        tokens = checks.tokens(made, made.model.ledger)
        made.model.pace_s = 0.0
        phase("trees against uninterrupted ones")
        wrong, compared = aftermath.wrong_trees(made, storm.jobs, scale.trees)
        phase("the pocket model")
        pocket = _pocket(made, scale, seed)
        pocket_wrong, pocket_compared = aftermath.wrong_trees(made, pocket.jobs, scale.pocket_jobs)
        phase("the database and its chain")
        inconsistent = checks.inconsistencies(made)
        report = verify_all(made.urls.database_url, processes=1)
        inconsistent += [str(finding) for finding in report.findings]
        ended = dict(made.ask("SELECT state, count(*) FROM jobs GROUP BY state"))
        results = checks.results_per_job(made)
        leaks += aftermath.leaks_after_stop(made)
    recoveries = [*storm.recoveries, *pocket.recoveries]
    return {
        "jobs": sum(ended.values()),
        "faults": len(recoveries) + scale.window,
        "lost": sum(ended.values()) - ended.get("succeeded", 0) - 1,
        "duplicated": sum(n for count, n in results.items() if count > 1),
        "committed_tokens_regenerated": tokens.again_committed,
        "uncommitted_tokens_regenerated": tokens.again_uncommitted,
        "tokens_generated": tokens.generated,
        "tokens_committed": tokens.committed,
        "longest_stop_s": round(max(made.stops_s), 1),
        **_recovery(storm),
        "window_lost": ours.never_ran,
        "window_messages_gone": ours.messages_gone,
        "window_jobs": ours.sent,
        "window_plain_celery_lost": plain and plain.never_ran,
        "poison": poison,
        "trees_compared": compared + pocket_compared,
        "trees_different": len(wrong) + len(pocket_wrong),
        "inconsistencies": inconsistent,
        "chain_links": report.links,
        "leaks": leaks,
        "requests_refused": made.model.refused,
        "storm_seconds": round(storm.seconds, 1),
        "seconds": round(time.monotonic() - began, 1),
        "seed": seed,
        "settings": SETTINGS,
    }


def _storm(made: Rig, scale: Scale, seed: int) -> Storm:
    plan = [kind for kind, count in scale.faults.items() for _ in range(count)]
    Random(seed).shuffle(plan)
    return rage(
        made, plan, jobs=scale.jobs, seed=seed, pause_s=scale.pause_s,
        outages_s=(scale.redis_down_s, scale.postgres_down_s),
    )  # fmt: skip


def _stop_in_silence(made: Rig, worker: Member) -> list[JobHandle]:
    """A worker in the middle of jobs has to stop when none of its servers answers; the jobs."""
    handles = made.producer.submit_many([job(_SILENT + i, 16) for i in range(2)])
    wait_until(lambda: any(made.running()), "a job runs")
    for proxy in made.proxies.values():
        proxy.cut(all_new=True)
    made.dismiss(worker)
    for proxy in made.proxies.values():
        proxy.restore()
    return handles


def _poison(made: Rig, interrupted: list[JobHandle]) -> dict[str, Any]:
    """A job that kills its worker, among others that must not suffer. As delivered: two.

    Before them the worker ends those that another one was interrupted in.
    """
    quarantine: dict[str, Any] = {"MARCO_QUARANTINE_AFTER": "2", "MARCO_WORKER_SCHEDULER": "true"}
    schedulers = [m for m in made.members if m.name.startswith("scheduler")]
    for member in schedulers:
        made.dismiss(member)
    worker = made.start_worker("poisoned", 1, **quarantine)
    made.producer.wait(interrupted, timeout_s=120)
    wave = [job(_POISON + i, 16, poison=i == 0) for i in range(4)]
    results = made.producer.wait(made.producer.submit_many(wave), timeout_s=120)
    attempts = made.producer.status(str(results[0].job_id)).attempts
    made.dismiss(worker)
    return {
        "state": str(results[0].state),
        "error": results[0].error_type,
        "workers_killed": attempts,
        "others": [str(result.state) for result in results[1:]],
    }


def _pocket(made: Rig, scale: Scale, seed: int) -> Storm:
    made.runtime = "embedded"
    made.start_scheduler("scheduler-c")
    made.start_worker("worker-c", 2)
    plan = ["kill_child"] * scale.pocket_kills
    return rage(
        made, plan, jobs=scale.pocket_jobs, seed=seed, pause_s=1.0, outages_s=(0.0, 0.0),
        first=_POCKET, wave=1,
    )  # fmt: skip


def _recovery(storm: Storm) -> dict[str, Any]:
    seconds = [r.seconds for r in storm.recoveries if r.seconds is not None]
    by_kind: dict[str, list[float]] = {}
    for recovery in storm.recoveries:
        by_kind.setdefault(recovery.kind, []).append(recovery.seconds or 0.0)
    return {
        "median_recovery_s": round(median(seconds), 2),
        "p95_recovery_s": round(quantiles(seconds, n=20)[-1], 2),
        "kinds": dict(Counter(r.kind for r in storm.recoveries)),
        "median_recovery_s_by_kind": {k: round(median(v), 2) for k, v in by_kind.items()},
        "longest_recovery_s_by_kind": {k: round(max(v), 2) for k, v in by_kind.items()},
    }
