"""What the scripts with_*.py share: searches at once, each in a process of its own, as ours.

Runs in the peers' environment: the standard library only. Called with a file that holds a Task;
writes an Outcome as JSON to the file named second.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Task:
    """What is asked of a peer."""

    url: str  # of an OpenAI-compatible server, without /v1
    questions: list[str]  # one search each, all at once
    system: str  # prompt
    budget: int  # completions, or rollouts where they consist of several
    width: int  # generations at once in one search, where the peer takes such a number


@dataclasses.dataclass
class Outcome:
    """What came of it."""

    seconds: float = 0.0  # from the first search's start to the last one's end
    cpu_s: float = 0.0  # of the peer's processes, from the same moment on
    kept: list[int] = dataclasses.field(default_factory=list)  # completions, search by search
    errors: list[str] = dataclasses.field(default_factory=list)  # of searches that were lost


def task() -> Task:
    """The task named on the command line."""
    return Task(**json.loads(Path(sys.argv[1]).read_text()))


def done(outcome: Outcome) -> None:
    """Hand the outcome back."""
    Path(sys.argv[2]).write_text(json.dumps(dataclasses.asdict(outcome)))


def main(search: Callable[[Task, str], int]) -> None:
    """Run `search` for every question; it answers how many completions it kept."""
    asked = task()
    processes = multiprocessing.get_context("fork")
    ready = processes.Barrier(len(asked.questions) + 1)
    pipes = [processes.Pipe(duplex=False) for _ in asked.questions]
    workers = [
        processes.Process(target=_one, args=(search, asked, question, ready, pipe[1]))
        for question, pipe in zip(asked.questions, pipes, strict=True)
    ]
    for worker in workers:
        worker.start()
    ready.wait(300)
    began = time.monotonic()
    found = [reader.recv() for reader, _ in pipes]
    outcome = Outcome(seconds=time.monotonic() - began)
    for kept, cpu_s, error in found:
        outcome.kept.append(kept)
        outcome.cpu_s += cpu_s
        outcome.errors += [error] if error else []
    for worker in workers:
        worker.join()
    done(outcome)


def _one(
    search: Callable[[Task, str], int],
    asked: Task,
    question: str,
    ready: Barrier,
    pipe: multiprocessing.connection.Connection,
) -> None:
    kept, error = 0, ""
    ready.wait(300)
    began = time.process_time()
    try:
        kept = search(asked, question)
    except Exception as raised:  # whatever a peer raises ends that one search
        error = f"{type(raised).__name__}: {raised}"
    pipe.send((kept, time.process_time() - began, error))
