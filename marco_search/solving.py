"""The search as a library call: no queue, no database, nothing kept.

from marco_search import solve
print(solve("Tom has 3 apples and buys 5 more. How many apples does Tom have now?").answer)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from marco_search import settings as settings_module
from marco_search.driver import Finished, MemoryJournal, plan, run_search
from marco_search.jobs import Job, JobResult, ReasoningJob, SearchOptions
from marco_search.outcome import job_result
from marco_search.runtime import open_runtime
from marco_search.runtime.base import Runtime
from marco_search.search.mcts import Search


def solve(job: Job | str, *, runtime: Runtime | None = None, **options: Any) -> JobResult:
    """Search one job and return its ranked answers.

    `job` is a job, or a question for a ReasoningJob; `options` are the fields of
    SearchOptions (strategy="step", rollouts=16, seed=0, ...) for a question given as text.
    Without `runtime` the one that the settings name is opened for this call; open one with
    `marco_search.runtime.open_runtime` to reuse it over many.

    Raises InvalidJob for bad input, ModelRefused or RuntimeUnavailable from the runtime.
    """
    if isinstance(job, str):
        job = ReasoningJob(question=job, options=SearchOptions(**options))
    elif options:
        raise TypeError("options go with a question; a job carries its own")
    return job_result(job, search(job, runtime=runtime))


def search(
    job: Job,
    *,
    runtime: Runtime | None = None,
    on_round: Callable[[Search], None] | None = None,
) -> Finished:
    """Search one job and return the finished search with its tree (see `solve`)."""
    if runtime is not None:
        return run_search(job, plan(job, runtime), runtime, MemoryJournal(), on_round=on_round)
    opened = open_runtime(settings_module.load())
    try:
        return search(job, runtime=opened, on_round=on_round)
    finally:
        opened.close()
