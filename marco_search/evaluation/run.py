"""Runs a strategy over problems, in this process or through the queue.

Results are appended to a JSON Lines file as they arrive; a second run only does what is missing.
Labels stay here: a search gets a job without one, and its result is graded afterwards.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import TYPE_CHECKING, Any

from marco_search import settings
from marco_search.engine import Journal, SearchPlan, make_plan, profile_of, run_search
from marco_search.errors import InputError, InvalidDataSet, RuntimeUnavailable
from marco_search.evaluation.data_sets import Problem
from marco_search.evaluation.grading import Grader
from marco_search.evaluation.statistics import wilson
from marco_search.evaluation.traces import Trace, end_line, read, traced, write
from marco_search.jobs import Job, JobResult, SearchOptions
from marco_search.kinds import kind_of
from marco_search.runtime.base import Runtime
from marco_search.search.actions import Action
from marco_search.search.config import SearchConfig

if TYPE_CHECKING:
    from producer import Producer

THREADS = 16
"""Searches at once in this process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How each problem is searched."""

    options: SearchOptions = field(default_factory=SearchOptions)
    keep_tokens: bool = False  #: keep each token's scores, for rescoring

    def job(self, problem: Problem) -> Job:
        """The problem's job under these options and a seed of its own. It has no label."""
        digest = hashlib.sha256(f"{self.options.seed}:{problem.key}".encode()).digest()
        seed = int.from_bytes(digest[:4], "big") & 0x7FFF_FFFF
        options = self.options.model_copy(update={"seed": seed})
        return problem.job.model_copy(update={"options": options})


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Progress of a run."""

    done: int
    total: int
    graded: int  #: of the done ones, those with a label
    right: int
    tokens: int  #: generated
    seconds: float  #: of this call
    resumed: int  #: found in the file when the call began
    rollouts: int = 0
    failed: int = 0  #: rollouts that the runtime gave no text for

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy so far."""
        return wilson(self.right, self.graded)

    @property
    def seconds_left(self) -> float | None:
        """Estimate from this call's pace; None before the first result."""
        new = self.done - self.resumed
        return self.seconds / new * (self.total - self.done) if new else None


OnProgress = Callable[[Progress], None]
Searches = Generator[Trace, None, None]


def _run(
    problems: Sequence[Problem],
    recipe: Recipe,
    names: Mapping[str, str],
    file: Path,
    on_progress: OnProgress | None,
    search: Callable[[list[Problem]], Searches],
) -> list[Trace]:
    """All traces in problem order; `search` makes those that `file` has none of.

    `names` has each problem's run. A trace with failed rollouts is made again: what failed may
    succeed now. So is one without the token scores that `recipe` keeps.
    """
    if file.exists() and not file.is_file():
        raise InputError(f"{file}: searches are kept in a file, which a later run reads")
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = {t.key: t for t in read(file) if names.get(t.key) == t.run} if file.exists() else {}
    whole = {key: t for key, t in kept.items() if t.scores or not recipe.keep_tokens}
    traces = {key: trace for key, trace in whole.items() if not trace.failed}
    grader, began, resumed = Grader(problems), time.monotonic(), len(traces)

    def report() -> None:
        if on_progress:
            graded = [p for p in problems if p.expected and p.key in traces]
            progress = Progress(
                done=len(traces),
                total=len(problems),
                graded=len(graded),
                right=sum(grader.solved(traces[p.key]) for p in graded),
                tokens=sum(t.tokens for t in traces.values()),
                seconds=time.monotonic() - began,
                resumed=resumed,
                rollouts=sum(len(t.rollouts) for t in traces.values()),
                failed=sum(t.failed for t in traces.values()),
            )
            on_progress(progress)

    report()
    todo = [p for p in problems if p.key not in traces]
    end_line(file)
    with file.open("a", encoding="utf-8") as out, closing(search(todo)) as made:
        for trace in made:
            write(out, trace)
            traces[trace.key] = trace
            report()
    return [traces[p.key] for p in problems]


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def _around(job: Job, prompt: str) -> str:
    """A prompt without the question in it."""
    return prompt.replace(kind_of(job).user_turn(job), "{question}")


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

    Each search waits for its own round while others fill the engine's batches, so one thread per
    search is enough. Raises what a search raises, after the running searches have been stored.
    Ctrl-C ends those at once; finished ones are kept.
    """
    plans = {p.key: make_plan(recipe.job(p), runtime) for p in problems}
    names = {p.key: _run_name(recipe, plans[p.key], p.job) for p in problems}
    journal = _Journal()

    def search(problem: Problem) -> Trace:
        finished = run_search(recipe.job(problem), plans[problem.key], runtime, journal)
        return traced(
            problem.key,
            problem.job,
            finished.search.tree,
            config=finished.plan.config,
            keep_tokens=recipe.keep_tokens,
            run=names[problem.key],
            stop_reason=str(finished.search.stop_reason),
            seconds=round(finished.seconds, 3),
            model=f"{finished.plan.model} {finished.plan.revision}",
        )

    # A queue and not `concurrent.futures.wait`: Ctrl-C while that takes the futures' locks leaves
    # them locked, and every search waits forever.
    ended = SimpleQueue[Trace | BaseException | None]()
    no_more = Event()

    def keep(problem: Problem) -> None:
        try:
            ended.put(None if no_more.is_set() else search(problem))
        except BaseException as error:
            ended.put(error)

    def searches(todo: list[Problem]) -> Searches:
        failure: BaseException | None = None
        begun = list[Future[None]]()
        with ThreadPoolExecutor(threads) as pool:
            try:
                for problem in todo:
                    begun.append(pool.submit(keep, problem))
                for _ in todo:
                    found = ended.get()
                    if isinstance(found, Trace):
                        yield found
                    elif found:
                        failure = failure or found
                        no_more.set()
            except (KeyboardInterrupt, GeneratorExit):
                no_more.set()
                journal.interrupted = True
                while not all(future.done() for future in begun):
                    runtime.abort()  # again: one may have begun a round in between
                    time.sleep(0.1)
                raise
        if failure:
            raise failure

    return _run(problems, recipe, names, file, on_progress, searches)


def _run_name(recipe: Recipe, made: SearchPlan, job: Job) -> str:
    """A hash of everything that determines how a problem is searched, except the problem itself.

    That is the configuration, the model and the prompt around the question. Settings at their
    defaults are left out, so that traces from before a setting was added stay valid.
    """
    usual = SearchConfig(strategy="", action=Action.WHOLE).to_json()
    config = made.config.to_json() | {"seed": recipe.options.seed, "profile": ""}
    return _digest(
        {
            "config": {k: v for k, v in config.items() if v != usual[k]},
            "model": made.model,
            "revision": made.revision,
            "prompt": _around(job, made.prompt),
            "seeds": "of each problem",
        }
    )


class _Journal(Journal):
    """That of all searches of a run."""

    interrupted = False

    def should_stop(self) -> None:
        """Raises CancelledError after Ctrl-C."""
        if self.interrupted:
            raise CancelledError


def run_queued(
    problems: Sequence[Problem],
    recipe: Recipe,
    file: Path,
    producer: Producer,
    *,
    on_progress: OnProgress | None = None,
) -> list[Trace]:
    """As `run`, with one job a problem, its tree read back from Postgres.

    Some worker must be running. Jobs carry no label; their idempotency keys make a second run
    pick up the jobs of the first. Raises RuntimeUnavailable after all have ended if any failed,
    InvalidDataSet if the workers have another model than earlier traces of the run.
    """
    names = {p.key: _queued_name(recipe, p) for p in problems}
    before = read(file) if file.exists() else []
    tried = Counter((t.key, t.run) for t in before if t.failed)

    def searches(todo: list[Problem]) -> Searches:
        jobs = []
        for problem in todo:
            name = names[problem.key]
            # Another key for each time it was searched: the times before had failed rollouts.
            again = tried[problem.key, name]
            key = f"eval-{name}-{problem.key}" + (f"-{again + 1}" if again else "")
            jobs.append(recipe.job(problem).model_copy(update={"idempotency_key": key}))
        handles = producer.submit_many(jobs)
        by_id = {str(h.id): p for h, p in zip(handles, todo, strict=True)}
        failed: list[JobResult] = []
        for result in producer.results(handles):
            if result.state != "succeeded" or result.redacted_at:
                failed.append(result)
                continue
            problem = by_id[str(result.job_id)]
            yield traced(
                problem.key,
                problem.job,
                producer.tree(str(result.job_id)),
                config=producer.config(str(result.job_id)),
                keep_tokens=recipe.keep_tokens,
                run=names[problem.key],
                stop_reason=str(result.stop_reason),
                seconds=round(result.seconds, 3),
                model=f"{result.model} {result.revision}",
            )
        if failed:
            first = failed[0]
            what = "redacted" if first.redacted_at else f"{first.state}: {first.error}"
            raise RuntimeUnavailable(
                f"{len(failed)} of {len(problems)} jobs have no answer to grade; the first, "
                f"{first.job_id}, is {what}"
            )

    found = _run(problems, recipe, names, file, on_progress, searches)
    models = {t.model for t in found if t.model}
    if len(models) > 1:
        raise InvalidDataSet(
            f"{file} has traces of several models ({', '.join(sorted(models))}): the workers have "
            "another model now than when it was begun. Name another file with --out"
        )
    return found


def _queued_name(recipe: Recipe, problem: Problem) -> str:
    """As `_run_name`, as far as the one who submits can know."""
    loaded, job = settings.load(), recipe.job(problem)
    prompt = "\n".join(f"{m.role}: {m.content}" for m in kind_of(job).messages(job))
    about = [
        loaded.runtime,
        str(loaded.model),
        profile_of(job.options, "").label,
        _around(job, prompt),
    ]
    return _digest([recipe.options.model_dump(mode="json"), about, "seeds of each problem"])
