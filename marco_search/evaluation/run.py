"""Runs a strategy over problems in this process, many searches at once over one runtime.

Each search waits for its own round while others fill the engine's batches, so one thread a
search is enough. Results are appended to a JSON Lines file as they come; a run that is
started again does only what is missing.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

from marco_search.driver import MemoryJournal, Plan, plan, run_search
from marco_search.errors import InvalidDataSet
from marco_search.evaluation.data_sets import Problem
from marco_search.evaluation.grading import Grader
from marco_search.evaluation.statistics import wilson
from marco_search.evaluation.traces import Trace, traced
from marco_search.jobs import Job, SearchOptions
from marco_search.kinds import kind_of
from marco_search.runtime.base import Runtime
from marco_search.search.config import Action, SearchConfig

THREADS = 16
"""Searches at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How each problem is searched. `changes` replace fields of SearchConfig.to_json()."""

    options: SearchOptions = field(default_factory=SearchOptions)
    changes: dict[str, Any] = field(default_factory=dict)
    keep_tokens: bool = False  # keep each token's scores, for rescoring

    def job(self, problem: Problem) -> Job:
        """The problem's job under these options and a seed of its own. It has no label."""
        seed = problem_seed(self.options.seed, problem.key)
        options = self.options.model_copy(update={"seed": seed})
        return problem.job.model_copy(update={"options": options})

    def plan(self, problem: Problem, runtime: Runtime) -> Plan:
        """What the problem's search is fixed to."""
        fixed = plan(self.job(problem), runtime)
        config = SearchConfig.from_json(fixed.config.to_json() | self.changes)
        return replace(fixed, config=config)


def problem_seed(seed: int, key: str) -> int:
    """The seed of one problem's search, in [0, 2**31): a hash of the run's seed and its key."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return int.from_bytes(digest[:4], "big") & 0x7FFF_FFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run stands."""

    done: int
    total: int
    graded: int  # of the done ones, those with a label
    right: int
    tokens: int  # generated
    seconds: float  # of this call
    resumed: int  # found in the file when the call began
    rollouts: int = 0
    failed: int = 0  # rollouts that the runtime gave no text for

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy so far."""
        return wilson(self.right, self.graded)

    @property
    def seconds_left(self) -> float | None:
        """Estimate from this call's pace; None before the first result."""
        fresh = self.done - self.resumed
        return self.seconds / fresh * (self.total - self.done) if fresh else None


OnProgress = Callable[[Progress], None]


def run_hash(recipe: Recipe, fixed: Plan, job: Job) -> str:
    """A name for all that decides how a problem is searched, the problem itself left out.

    That is the configuration, the model and the prompt around the question. Settings at their
    defaults do not count: a new one leaves traces that know nothing of it valid.
    """
    usual = SearchConfig(strategy="", action=Action.WHOLE).to_json()
    config = fixed.config.to_json() | {"seed": recipe.options.seed}
    told = {
        "config": {k: v for k, v in config.items() if v != usual[k]},
        "model": fixed.model,
        "revision": fixed.revision,
        "prompt": around(job, fixed.prompt),
        "seeds": "of each problem",
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def around(job: Job, prompt: str) -> str:
    """A prompt without the question in it."""
    return prompt.replace(kind_of(job).user_turn(job), "{question}")


def going_on(file: Path, names: Mapping[str, str]) -> dict[str, Trace]:
    """The traces in `file` that need not be made again; `names` has each problem's run.

    One with failed rollouts is: what failed may succeed now.
    """
    kept = {(t.key, t.run): t for t in read(file)} if file.exists() else {}
    found = {key: kept[key, name] for key, name in names.items() if (key, name) in kept}
    return {key: trace for key, trace in found.items() if not trace.failed}


def run(
    problems: Sequence[Problem],
    recipe: Recipe,
    runtime: Runtime,
    file: Path,
    *,
    threads: int = THREADS,
    on_progress: OnProgress | None = None,
) -> list[Trace]:
    """Search every problem that `file` has no trace of yet; all traces, in problem order.

    Labels stay here: a search gets a job without one, and grading is done on what it gives
    back. Raises what a search raises, after the searches under way have been kept. Ctrl-C ends
    those at once; the ones that had ended are kept.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    plans = {p.key: recipe.plan(p, runtime) for p in problems}
    names = {p.key: run_hash(recipe, plans[p.key], p.job) for p in problems}
    traces = going_on(file, names)
    todo = [p for p in problems if p.key not in traces]
    journal = _Journal()
    grader, began, resumed = Grader(problems), time.monotonic(), len(traces)

    def search(problem: Problem) -> Trace:
        finished = run_search(recipe.job(problem), plans[problem.key], runtime, journal)
        tree = finished.search.tree
        return traced(
            problem.key,
            problem.job,
            tree.nodes,
            tree.rollouts,
            run=names[problem.key],
            config=finished.plan.config,
            stop_reason=str(finished.search.stop_reason),
            seconds=finished.seconds,
            keep_tokens=recipe.keep_tokens,
            model=f"{finished.plan.model} {finished.plan.revision}",
        )

    def report() -> None:
        if on_progress:
            seconds = time.monotonic() - began
            on_progress(progress_of(problems, traces, grader, resumed=resumed, seconds=seconds))

    report()
    with file.open("a", encoding="utf-8") as out, ThreadPoolExecutor(threads) as pool:
        pending: set[Future[Trace]] = {pool.submit(search, p) for p in todo}
        failure: BaseException | None = None
        while pending:
            try:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
            except KeyboardInterrupt:
                _end(pending, journal, runtime)
                raise
            for future in done:
                if future.cancelled():
                    continue
                if error := future.exception():
                    failure = failure or error
                    for other in pending:
                        other.cancel()  # those under way go on and are kept
                    continue
                trace = future.result()
                write(out, trace)
                traces[trace.key] = trace
            out.flush()
            report()
    if failure:
        raise failure
    return [traces[p.key] for p in problems]


class _Journal(MemoryJournal):
    """That of all searches of a run: one look of each before a round."""

    interrupted = False

    def should_stop(self) -> None:
        """Raises CancelledError after Ctrl-C."""
        if self.interrupted:
            raise CancelledError


def _end(pending: set[Future[Trace]], journal: _Journal, runtime: Runtime) -> None:
    """End searches without waiting for their rounds."""
    journal.interrupted = True
    for future in pending:
        future.cancel()
    while pending:
        runtime.abort()  # again: one may have begun a round in between
        _, pending = wait(pending, timeout=0.1)


def read(file: Path) -> list[Trace]:
    """The traces of a file. A last line that was cut off by an interruption is left out.

    Raises InvalidDataSet for any other line that is not a trace.
    """
    text = file.read_text(encoding="utf-8")
    lines = text.removesuffix("\n").split("\n") if text else []  # an answer may hold U+2028
    whole = lines if text.endswith("\n") or not lines else lines[:-1]
    if len(whole) < len(lines):
        # What is appended next must begin on a line of its own.
        file.write_text("".join(f"{line}\n" for line in whole), encoding="utf-8")
    traces = []
    for i, line in enumerate(whole, start=1):
        try:
            traces.append(Trace.from_json(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InvalidDataSet(f"{file}, line {i}: not a trace of an evaluation") from None
    return traces


def write(out: TextIO, trace: Trace) -> None:
    """Append one trace as a line."""
    out.write(json.dumps(trace.to_json(), ensure_ascii=False) + "\n")
    out.flush()


def progress_of(
    problems: Sequence[Problem],
    traces: Mapping[str, Trace],
    grader: Grader,
    *,
    resumed: int,
    seconds: float,
) -> Progress:
    """Where a run stands that has these traces, by problem key, after so many seconds."""
    graded = [p for p in problems if p.expected and p.key in traces]
    return Progress(
        done=len(traces),
        total=len(problems),
        graded=len(graded),
        right=sum(grader.solved(traces[p.key]) for p in graded),
        tokens=sum(t.tokens for t in traces.values()),
        seconds=seconds,
        resumed=resumed,
        rollouts=sum(len(t.rollouts) for t in traces.values()),
        failed=sum(t.failed for t in traces.values()),
    )
