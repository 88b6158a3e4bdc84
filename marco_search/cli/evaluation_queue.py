"""An evaluation through the queue: one job a problem, its tree read back from Postgres.

Jobs carry no label. Their idempotency keys make a second run pick up the jobs of the first.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from marco_search import settings
from marco_search.errors import InvalidDataSet, MarcoError, RuntimeUnavailable
from marco_search.evaluation.data_sets import Problem
from marco_search.evaluation.grading import Grader
from marco_search.evaluation.run import (
    OnProgress,
    Recipe,
    around,
    going_on,
    progress_of,
    read,
    write,
)
from marco_search.evaluation.traces import Trace, traced
from marco_search.jobs import JobResult
from marco_search.kinds import kind_of
from marco_search.search.strategies import configure
from marco_search.search.tree import Tree
from marco_search.store.trail import trail

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

    Some worker must be running. Raises RuntimeUnavailable after all have ended if any failed,
    InvalidDataSet if the workers have another model than earlier traces of the run.
    """
    names = {p.key: _name(recipe, p) for p in problems}
    traces = going_on(file, names)
    tried = Counter((t.key, t.run) for t in read(file)) if file.exists() else Counter()
    grader, began, resumed = Grader(problems), time.monotonic(), len(traces)
    file.parent.mkdir(parents=True, exist_ok=True)

    def report() -> None:
        if on_progress:
            seconds = time.monotonic() - began
            on_progress(progress_of(problems, traces, grader, resumed=resumed, seconds=seconds))

    report()
    todo = [p for p in problems if p.key not in traces]
    jobs = [
        recipe.job(p).model_copy(
            update={"idempotency_key": _idempotency_key(p, names[p.key], tried)}
        )
        for p in todo
    ]
    handles = producer.submit_many(jobs)
    by_id = {str(h.id): p for h, p in zip(handles, todo, strict=True)}
    failed: list[JobResult] = []
    with file.open("a", encoding="utf-8") as out:
        for result in producer.results(handles):
            if result.state != "succeeded":
                failed.append(result)
                continue
            problem = by_id[str(result.job_id)]
            trace = _trace(problem, result, recipe, names[problem.key], producer)
            write(out, trace)
            traces[trace.key] = trace
            report()
    if failed:
        raise RuntimeUnavailable(
            f"{len(failed)} of {len(problems)} jobs did not succeed; the first, "
            f"{failed[0].job_id}, is {failed[0].state}: {failed[0].error}"
        )
    found = [traces[p.key] for p in problems]
    models = {t.model for t in found if t.model}
    if len(models) > 1:
        raise InvalidDataSet(
            f"{file} has traces of several models ({', '.join(sorted(models))}): the workers have "
            "another model now than when it was begun. Name another file with --out"
        )
    return found


def _name(recipe: Recipe, problem: Problem) -> str:
    """What decides how a problem is searched, as far as the one who submits can know."""
    if recipe.changes:
        raise MarcoError("only what SearchOptions has can go through the queue; use --local")
    said, job = settings.load(), recipe.job(problem)
    kind = kind_of(job)
    prompt = "\n".join(f"{m.role}: {m.content}" for m in kind.messages(job))
    told = [
        recipe.options.model_dump(mode="json"),
        said.runtime,
        str(said.model),
        around(job, prompt + kind.assistant_prefix),
        "seeds of each problem",
    ]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def _idempotency_key(problem: Problem, name: str, tried: Counter[tuple[str, str]]) -> str:
    """Another one for each time the problem was searched: those before had failed rollouts."""
    again = tried[problem.key, name]
    return f"eval-{name}-{problem.key}" + (f"-{again + 1}" if again else "")


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
        model=f"{result.model} {result.revision}",
    )
