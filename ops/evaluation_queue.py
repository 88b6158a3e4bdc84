"""An evaluation through the queue: one job a problem, its tree read back from Postgres.

Jobs carry no label. Their idempotency keys make a second run pick up the jobs of the first.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from marco_search import settings
from marco_search.errors import MarcoError, RuntimeUnavailable
from marco_search.evaluation.data_sets import Problem
from marco_search.evaluation.grading import Grader
from marco_search.evaluation.run import OnProgress, Recipe, progress_of, read, write
from marco_search.evaluation.traces import Trace, traced
from marco_search.jobs import JobResult
from marco_search.search.strategies import configure
from marco_search.search.tree import Tree
from marco_search.store import trail

if TYPE_CHECKING:
    from producer import Producer


def run_queued(
    problems: Sequence[Problem],
    recipe: Recipe,
    file: Path,
    producer: Producer,
    *,
    on_progress: OnProgress | None = None,
) -> list[Trace]:
    """Submit what `file` has no trace of, wait, keep the traces; all of them, in order.

    Some worker must be running. Raises RuntimeUnavailable after all have ended if any failed.
    """
    name = _name(recipe)
    kept = {t.key: t for t in read(file) if t.run == name} if file.exists() else {}
    traces = {p.key: kept[p.key] for p in problems if p.key in kept}
    grader, began, resumed = Grader(problems), time.monotonic(), len(traces)
    file.parent.mkdir(parents=True, exist_ok=True)

    def report() -> None:
        if on_progress:
            seconds = time.monotonic() - began
            on_progress(progress_of(problems, traces, grader, resumed=resumed, seconds=seconds))

    report()
    todo = [p for p in problems if p.key not in traces]
    jobs = [
        recipe.job(p).model_copy(update={"idempotency_key": f"eval-{name}-{p.key}"}) for p in todo
    ]
    handles = producer.submit_many(jobs)
    by_id = {str(h.id): p for h, p in zip(handles, todo, strict=True)}
    failed: list[JobResult] = []
    with file.open("a", encoding="utf-8") as out:
        for result in producer.results(handles):
            if result.state != "succeeded":
                failed.append(result)
                continue
            trace = _trace(by_id[str(result.job_id)], result, recipe, name, producer)
            write(out, trace)
            traces[trace.key] = trace
            report()
    if failed:
        raise RuntimeUnavailable(
            f"{len(failed)} of {len(problems)} jobs did not succeed; the first, "
            f"{failed[0].job_id}, is {failed[0].state}: {failed[0].error}"
        )
    return [traces[p.key] for p in problems]


def _name(recipe: Recipe) -> str:
    """What decides how a problem is searched, as far as the one who submits can know."""
    if recipe.changes:
        raise MarcoError("only what SearchOptions has can go through the queue; use --local")
    said = settings.load()
    told = [recipe.options.model_dump(mode="json"), said.runtime, str(said.model)]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def _trace(
    problem: Problem, result: JobResult, recipe: Recipe, name: str, producer: Producer
) -> Trace:
    with producer.database.transaction() as conn:
        tree = Tree.restore(*trail.load(conn, UUID(result.job_id)))
    return traced(
        problem.key,
        problem.job,
        tree.nodes,
        tree.rollouts,
        run=name,
        config=configure(recipe.options.strategy),
        stop_reason=str(result.stop_reason),
        seconds=result.seconds,
        keep_tokens=recipe.keep_tokens,
    )
