"""The paper's table in miniature: run what is missing, then write docs/results.*.

    python -m ops.bench.paper_table                     all runs, then the report
    python -m ops.bench.paper_table --language en --run auto --run samples     some parts
    python -m ops.bench.paper_table --report            only the report, from what is there
    python -m ops.bench.paper_table --rollouts 8        a quarter of the time, no Test@32

Every run keeps its traces under MARCO_HOME/evaluation/paper, and goes on where it stopped.
Two processes may make different parts at the same time.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from marco_search import settings
from marco_search.cli.evaluation import progress_text
from marco_search.evaluation.data_sets import Problem, load
from marco_search.evaluation.run import Progress, run
from marco_search.runtime import open_runtime
from marco_search.runtime.base import Runtime
from ops.bench.paper_report import write_report
from ops.bench.paper_runs import PROBLEMS, ROLLOUTS, SETS, Run, runs
from ops.bench.paper_texts import OPEN_ENDED, TEXT_RUNS, TRANSLATION, text_problems

DOCS = Path(__file__).resolve().parents[2] / "docs"
THREADS = 24
"""Searches at once; with 8 branches each they fill the engine's batches."""


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--language", choices=SETS, action="append")
    parser.add_argument("--run", choices=[*runs(), "texts"], action="append")
    parser.add_argument("--rollouts", type=int, default=ROLLOUTS, help="of each run")
    parser.add_argument("--problems", type=int, default=PROBLEMS, help="a language")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--no-report", action="store_true", help="write nothing")
    parser.add_argument("--docs", type=Path, default=DOCS)
    given = parser.parse_args(words)
    folder = settings.load().home / "evaluation" / "paper"
    if not given.report:
        runtime = open_runtime(settings.load())
        try:
            known = runs(given.rollouts)
            for name in [n for n in given.run or known if n in known]:
                for language in given.language or SETS:
                    problems = load(SETS[language], limit=given.problems)
                    make(known[name], language, problems, folder, runtime)
            if "texts" in (given.run or ["texts"]):
                for kind in (TRANSLATION, OPEN_ENDED):
                    for one in TEXT_RUNS.values():
                        make(one, kind, text_problems(kind), folder, runtime)
        finally:
            runtime.close()
    if not given.no_report:
        for file in write_report(folder, given.docs, given.problems, given.rollouts):
            print(file)


def make(
    one: Run, language: str, problems: Sequence[Problem], folder: Path, runtime: Runtime
) -> None:
    """One run over one set; the seconds it took are added up beside its traces."""
    file, shown = one.file(folder, language), [0.0]

    def show(progress: Progress) -> None:
        if progress.done == progress.total or time.monotonic() - shown[0] > 10:
            shown[0] = time.monotonic()
            print(f"{language} {one.name}: {progress_text(progress)}", file=sys.stderr, flush=True)

    began = time.monotonic()
    try:
        run(problems, one.recipe(), runtime, file, threads=THREADS, on_progress=show)
    finally:
        note_seconds(file, time.monotonic() - began)


def note_seconds(file: Path, seconds: float) -> None:
    """Add to the wall-clock time that a run has taken, kept beside its traces."""
    beside = file.with_suffix(".seconds.json")
    before = json.loads(beside.read_text()) if beside.exists() else 0.0
    beside.write_text(json.dumps(round(before + seconds, 1)))


if __name__ == "__main__":
    main()
