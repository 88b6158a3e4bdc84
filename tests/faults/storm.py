"""A storm: jobs flow through a fleet while faults hit it, and every recovery is timed."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any
from uuid import UUID

from marco_search.errors import MarcoError
from marco_search.kinds import ReasoningJob
from marco_search.store.queue.states import FINAL
from producer import Producer
from tests.faults.kinds import FAULTS, Context, Hit
from tests.faults.rig import Rig
from tests.faults.worker import POISON

_TICK_S = 0.1


@dataclass(slots=True)
class Recovery:
    """One fault, and how long it took until all it hit went on."""

    kind: str
    since: float  # time.time() at the end of its cause
    hit: Hit
    seconds: float | None = None


@dataclass(slots=True)
class Storm:
    """What happened. `jobs` maps an id to the number in its question."""

    jobs: dict[UUID, int] = field(default_factory=dict)
    recoveries: list[Recovery] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)
    seconds: float = 0.0


def job(number: int, rollouts: int, *, poison: bool = False) -> ReasoningJob:
    """A job whose question holds its number, with a seed of its own."""
    options = {"strategy": "step", "rollouts": rollouts, "early_stop": False, "seed": number}
    priority = ("high", "normal", "low")[number % 3]
    text = f"What is {number} + 1? #{number}#" + (f" {POISON}" if poison else "")
    return ReasoningJob.model_validate(
        {"question": text, "options": options | {"max_new_tokens": 200}, "priority": priority}
    )


def rage(
    rig: Rig,
    plan: Sequence[str],
    *,
    jobs: int,
    seed: int,
    pause_s: float,
    outages_s: tuple[float, float],
    rollouts: int = 16,
    limit_s: float = 1800.0,
    first: int = 0,
    wave: int = 20,
) -> Storm:
    """Run at least `jobs` jobs, inject the faults of `plan` in order, see all recover.

    The jobs are numbered from `first` and come in waves, so that there is always something to
    hit. Between two faults lie up to `pause_s` seconds; `outages_s` are how long Redis and
    Postgres stay away. Fails when not all is over after `limit_s`.
    """
    storm = Storm()
    began = time.monotonic()
    context = Context(rig, Random(seed), *outages_s)
    injector = threading.Thread(
        target=_inject, args=(context, plan, pause_s, storm), name="faults", daemon=True
    )
    injector.start()
    while True:
        rig.attend()
        state = _look(rig)
        if state is not None:
            _time_recoveries(storm, state)
            waiting = sum(row[0] not in FINAL for row in state.jobs.values())
            storming = injector.is_alive()
            if waiting < 2 * wave and (storming or len(storm.jobs) < jobs):
                most = wave if storming else jobs - len(storm.jobs)
                _submit(rig.producer, storm, min(wave, most), rollouts, first)
            elif (
                not storming
                and not waiting
                and all(r.seconds is not None for r in storm.recoveries)
            ):
                break
        assert time.monotonic() - began < limit_s, _stuck(storm, state)
        time.sleep(_TICK_S)
    injector.join()
    storm.seconds = time.monotonic() - began
    if storm.errors:
        raise storm.errors[0]
    return storm


def _inject(context: Context, plan: Sequence[str], pause_s: float, storm: Storm) -> None:
    try:
        for kind in plan:
            time.sleep(context.random.uniform(0.0, pause_s))
            hit = FAULTS[kind](context)
            storm.recoveries.append(Recovery(kind, time.time(), hit))
    except BaseException as error:
        storm.errors.append(error)


def _submit(producer: Producer, storm: Storm, count: int, rollouts: int, first: int) -> None:
    """A wave of jobs; when Postgres is away, the next tick tries again."""
    first += len(storm.jobs)
    with contextlib.suppress(MarcoError):
        # A commit whose answer was lost must not become a second job with the same number.
        made = [job(first + i, rollouts) for i in range(count)]
        keyed = [j.model_copy(update={"idempotency_key": j.question}) for j in made]
        for i, handle in enumerate(producer.submit_many(keyed)):
            storm.jobs[handle.id] = first + i


@dataclass(slots=True)
class _State:
    jobs: dict[UUID, tuple[str, int]]  # state, rounds
    claimed_at: float  # last time that a job was claimed; Unix time
    queued: int  # jobs that could be claimed
    at: float


def _look(rig: Rig) -> _State | None:
    """The jobs now; None while Postgres is away."""
    if not rig.answers("postgres"):
        return None
    rows: list[tuple[Any, ...]] = rig.ask(
        "SELECT id, state, rounds, state = 'queued' AND run_after <= now() FROM jobs"
    )
    claimed = rig.ask(
        "SELECT extract(epoch FROM max(at))::float8 FROM audit_log WHERE event = 'claimed'"
    )[0][0]
    return _State(
        {job: (state, rounds) for job, state, rounds, _ in rows},
        claimed or 0.0,
        sum(bool(due) for *_, due in rows),
        time.time(),
    )


def _time_recoveries(storm: Storm, state: _State) -> None:
    for recovery in list(storm.recoveries):
        if recovery.seconds is not None or recovery.since > state.at:
            continue
        left = [
            job
            for job, rounds in recovery.hit.jobs.items()
            if state.jobs[job][0] not in FINAL and state.jobs[job][1] <= rounds
        ]
        if left or (recovery.hit.queue and state.claimed_at < recovery.since and state.queued):
            continue
        recovery.seconds = max(0.0, state.at - recovery.since)


def _stuck(storm: Storm, state: _State | None) -> str:
    waiting = {} if state is None else {
        str(job): row for job, row in state.jobs.items() if row[0] not in FINAL
    }  # fmt: skip
    late = [r for r in storm.recoveries if r.seconds is None]
    return f"the storm does not end: {len(waiting)} jobs wait, {waiting}; not recovered: {late}"
