"""Many searches at once, one a process as under the worker, each over the whole stack."""

from __future__ import annotations

import dataclasses
import gc
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from marco_search import engine
from marco_search.jobs import SearchOptions
from marco_search.kinds import ReasoningJob
from marco_search.runtime import open_runtime
from marco_search.runtime.base import Runtime
from marco_search.search.branches import Branch, Expansion, Finish
from marco_search.search.mcts import Search
from marco_search.settings import Settings
from ops.bench.engine.simulated_server import Simulated
from ops.bench.engine.simulator import Counters

# Of the length of a problem of MGSM.
_QUESTION = (
    "Number {i}. Every day, Wendi feeds each of her chickens three cups of mixed chicken feed, "
    "containing seeds, mealworms and vegetables to help keep them healthy. She gives the chickens "
    "their feed in three separate meals. In the morning, she gives her flock 15 cups of feed, in "
    "the afternoon another 25 cups. How many cups does she need in the final meal of the day?"
)


def job(i: int, strategy: str, rollouts: int) -> ReasoningJob:
    """The i-th job: it uses its whole budget, so that every run does the same work."""
    options = SearchOptions.model_validate(
        {
            "strategy": strategy,
            "rollouts": rollouts,
            "seed": i,
            "early_stop": False,
            "reflection": "never",
        }
    )
    return ReasoningJob(question=_QUESTION.format(i=i), options=options)


class Recorder:
    """A runtime that keeps what it was asked, round by round: [[prefix, seed, tokens], ...]."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.rounds: list[list[tuple[str, int, int]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def branch(self, expansions: Sequence[Expansion]) -> list[Branch]:
        """Handed on."""
        self.rounds.append(
            [(e.prefix, r.seed, r.max_new_tokens) for e in expansions for r in e.branches]
        )
        return self._runtime.branch(expansions)


def one(url: str, work: ReasoningJob, **changes: Any) -> tuple[Search, Recorder]:
    """One search in this process; `changes` of its configuration."""
    settings = Settings.model_validate({"MARCO_RUNTIME": url, "MARCO_RUNTIME_TIMEOUT_S": 600})
    recorder = Recorder(open_runtime(settings))
    try:
        return _search(work, recorder, changes), recorder
    finally:
        recorder.close()


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """Searches that ran at once."""

    counters: Counters
    seconds: float  # from the first one's start to the last one's end
    results: list[dict[str, Any]]  # of each: what was asked, what came, processor time


def many(server: Simulated, *, count: int, rollouts: int, strategy: str = "step") -> Run:
    """`count` searches at once, on an empty cache."""
    processes = multiprocessing.get_context("fork")
    ready = processes.Barrier(count + 1)
    server.reset()
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i}.json" for i in range(count)]
        workers = [
            processes.Process(
                target=_worker, args=(server.url, job(i, strategy, rollouts), ready, file)
            )
            for i, file in enumerate(files)
        ]
        # As the worker does before it forks. Else each process copies what this one has measured
        # before: that took more processor time than its search.
        gc.collect()
        gc.freeze()
        for worker in workers:
            worker.start()
        gc.unfreeze()
        ready.wait(300)
        began = time.monotonic()
        for worker in workers:
            worker.join()
        seconds = time.monotonic() - began
        if any(worker.exitcode for worker in workers):
            sys.exit("a search of the bench failed")
        return Run(server.counters(), seconds, [json.loads(file.read_text()) for file in files])


def _worker(url: str, work: ReasoningJob, ready: Barrier, file: Path) -> None:
    settings = Settings.model_validate({"MARCO_RUNTIME": url, "MARCO_RUNTIME_TIMEOUT_S": 600})
    recorder = Recorder(open_runtime(settings))
    ready.wait(300)
    began = time.process_time()
    search = _search(work, recorder, {})
    cpu_s = time.process_time() - began
    done = search.tree.rollouts
    result = {
        "rounds": recorder.rounds,
        "cpu_s": cpu_s,
        "generated_tokens": sum(r.generated_tokens for r in done),
        "prompt_tokens": sum(r.prompt_tokens for r in done),
        "cached_tokens": sum(r.cached_tokens for r in done),
        "failed": sum(r.finish is Finish.FAILED for r in done),
    }
    file.write_text(json.dumps(result))
    recorder.close()


def _search(work: ReasoningJob, runtime: Any, changes: dict[str, Any]) -> Search:
    fixed = engine.make_plan(work, runtime)
    fixed = dataclasses.replace(fixed, config=dataclasses.replace(fixed.config, **changes))
    return engine.run_search(work, fixed, runtime, engine.NullJournal()).search
