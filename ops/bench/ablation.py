"""What each part of the search is worth: one thing changed at a time.

    python -m ops.bench.ablation [--variant NAME ...] [--problems 250]

Runs on the development split, both languages; keeps traces under MARCO_HOME/evaluation and
goes on where it stopped. Prints one JSON line a variant: accuracy and tokens at each place where
its study looks at it (ops/bench/ablation_variants.py), and the difference to the base, problem by
problem. Then whole runs (no early stop) are rescored under other rewards and votes, without
generating. docs/ablation.jsonl holds what was printed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from marco_search import settings
from marco_search.evaluation.curves import Point
from marco_search.evaluation.data_sets import Problem, load
from marco_search.evaluation.grading import Grader
from marco_search.evaluation.report import table
from marco_search.evaluation.rescoring import rescore
from marco_search.evaluation.rewards import REWARDS
from marco_search.evaluation.run import Recipe, run
from marco_search.evaluation.statistics import paired, wilson
from marco_search.evaluation.traces import Trace
from marco_search.jobs import SearchOptions
from marco_search.runtime import open_runtime
from ops.bench.ablation_variants import SEED, STUDIES, Study, study_of
from ops.bench.development import export

PROBLEMS, THREADS = 250, 24
WHOLE = "whole"
WHOLE_ROLLOUTS, WHOLE_PROBLEMS = 12, 100
"""Of the run without early stop that is rescored."""


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    everything = [*(name for study in STUDIES for name in study.names), WHOLE]
    parser.add_argument("--variant", choices=everything, action="append")
    parser.add_argument("--problems", type=int, default=PROBLEMS, help="a language")
    parser.add_argument("--tables", type=Path, help="run nothing: such lines as Markdown tables")
    given = parser.parse_args(words)
    if given.tables:
        print(tables([json.loads(line) for line in given.tables.read_text().splitlines()]))
        return
    home = settings.load().home / "evaluation"
    problems = development_split(home, given.problems)
    runtime = open_runtime(settings.load())
    grader = Grader(problems)

    def made(name: str, how: Recipe, problems: Sequence[Problem]) -> list[Trace]:
        file = home / "ablation" / f"{name.replace(' ', '-')}.jsonl"
        return run(problems, how, runtime, file, threads=THREADS)

    try:
        for name in given.variant or everything:
            began = time.monotonic()
            if name == WHOLE:
                few = problems[: 2 * WHOLE_PROBLEMS]
                for line in rescored(few, made(WHOLE, whole(), few)):
                    _print(line)
                continue
            study = study_of(name)
            base = made(study.base, study.recipe(study.base), problems)
            traces = made(name, study.recipe(name), problems)
            seconds = round(time.monotonic() - began, 1)
            _print({"variant": name, **figures(study, traces, base, grader), "seconds": seconds})
    finally:
        runtime.close()


def development_split(home: Path, count: int) -> list[Problem]:
    """The first `count` problems of each language, in turn."""
    files = [home / f"development_{language}.jsonl" for language in ("en", "zh")]
    if not all(f.exists() for f in files):
        export(home)
    sets = [load(str(f), limit=count) for f in files]
    return [p for pair in zip(*sets, strict=True) for p in pair]


def whole() -> Recipe:
    """The run that is rescored: AUTO's base without an early stop."""
    options = SearchOptions(rollouts=WHOLE_ROLLOUTS, seed=SEED, early_stop=False)
    return Recipe(options=options, changes={"widening": 0.5}, keep_tokens=True)


def figures(
    study: Study, traces: Sequence[Trace], base: Sequence[Trace], grader: Grader
) -> dict[str, Any]:
    """At each cut: accuracy with its 95 % interval, tokens, and what the change gained."""
    return {
        study.label(cut): _point(study.cut(traces, grader, cut), study.cut(base, grader, cut))
        for cut in study.cuts
    }


def _point(point: Point, base: Point) -> dict[str, Any]:
    n, right = len(point.right), sum(point.right)
    low, high = wilson(right, n)
    gain = paired(point.right, base.right)
    return {
        "n": n,
        "accuracy": round(right / n, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "tokens_per_problem": round(point.tokens_per_problem, 1),
        "gain": round(gain.difference, 4),
        "gain_low": round(gain.low, 4),
        "gain_high": round(gain.high, 4),
    }


def rescored(problems: Sequence[Problem], traces: Sequence[Trace]) -> Iterator[dict[str, Any]]:
    """The same rollouts under every reward, and under other votes by the path's confidence."""
    grader = Grader(problems)
    for reward in REWARDS:
        yield rescore(traces, grader, reward=reward, sharpness=128.0).to_json()
    votes = [("vote", 1.0), ("best", 1.0), ("borda", 1.0), ("tree", 1.0), ("tree", 128.0)]
    for vote, power in votes + [("weighted", p) for p in (1.0, 8.0, 32.0, 64.0, 192.0)]:
        yield rescore(traces, grader, reward="since", vote=vote, sharpness=power).to_json()


def tables(lines: Sequence[dict[str, Any]]) -> str:
    """What `main` printed, as Markdown: each study, then the rewards and votes."""
    made = []
    for study in STUDIES:
        labels = [study.label(cut) for cut in study.cuts]
        head = ("Changed", "n", *(f"{label}: %, tokens, gain" for label in labels))
        rows = [
            (line["variant"], str(line[labels[0]]["n"]), *(_cell(line[at]) for at in labels))
            for line in lines
            if line.get("variant") in study.names
        ]
        made.append(table(head, rows))
    scores = [
        (
            f"{line['reward']}, {line['vote']}, power {line['sharpness']:g}",
            str(line["n"]),
            f"{100 * line['accuracy']:.1f} ({100 * line['low']:.0f} to {100 * line['high']:.0f})",
            f"{line['auroc']:.2f}",
            f"{line['auroc_within']:.2f}",
        )
        for line in lines
        if "reward" in line
    ]
    rewards = ("Reward, vote", "n", "accuracy %", "AUROC", "AUROC within a problem")
    return "\n\n".join([*made, table(rewards, scores)])


def _cell(at: dict[str, Any]) -> str:
    gain = f"{100 * at['gain']:+.1f} ({100 * at['gain_low']:+.1f} to {100 * at['gain_high']:+.1f})"
    return f"{100 * at['accuracy']:.1f}, {at['tokens_per_problem']:.0f}, {gain}"


def _print(line: dict[str, Any]) -> None:
    print(json.dumps(line))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
