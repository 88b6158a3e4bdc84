"""What each part of the search is worth: the winning strategy with one thing changed.

    python -m ops.bench.ablation [--variant NAME ...] [--problems 100]

Runs on the development split, both languages; keeps traces under MARCO_HOME/evaluation and
goes on where it stopped. Prints one JSON line a variant: accuracy over both languages at a few
token budgets, each search cut where its budget ends. Then the base run is rescored under other
rewards and votes, without generating. `docs/ablation.jsonl` holds what was printed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from marco_search import settings
from marco_search.evaluation.curves import Point, at_least, curve
from marco_search.evaluation.data_sets import Problem, load
from marco_search.evaluation.grading import Grader
from marco_search.evaluation.rescoring import rescore
from marco_search.evaluation.rewards import REWARDS
from marco_search.evaluation.run import Recipe, run
from marco_search.evaluation.statistics import wilson
from marco_search.evaluation.traces import Trace
from marco_search.jobs import SearchOptions
from marco_search.runtime import open_runtime
from ops.bench.development import export

SEED, ROLLOUTS, PROBLEMS, THREADS = 5, 12, 100, 24
BUDGETS = (400, 800, 1200)
"""Generated tokens per problem at which variants are compared."""
BASE = "base"
# Name -> fields of SearchConfig that differ from the strategy "auto" without its early stop.
VARIANTS: dict[str, dict[str, Any]] = {
    BASE: {},
    "flat": {"action": "whole"},
    "reflecting": {"reflection": "branch", "root_width": 2, "width": 2},
    "width 2": {"width": 2},
    "mini-step 16": {"action": "mini_step", "mini_step_tokens": 16},
    "temperature 0.7": {"temperature": 0.7},
    "root width 2": {"root_width": 2},
    "exploration 0.1": {"exploration": 0.1},
    "exploration 2": {"exploration": 2.0},
    "value of the rollout only": {"value": "rollout"},
    "PUCT": {"selection": "puct"},
    "WU-UCT": {"virtual_loss": 0.0},
    "values not normalised": {"normalise": False},
    "temperature 1.3": {"temperature": 1.3},
    "width 5": {"width": 5},
    "eight at a time": {"parallel": 8},
    "samples and redos, no steps": {
        "action": "whole", "reflection": "branch", "root_width": 2, "reflection_width": ROLLOUTS,
    },
}  # fmt: skip


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--variant", choices=VARIANTS, action="append")
    parser.add_argument("--problems", type=int, default=PROBLEMS, help="a language")
    given = parser.parse_args(words)
    home = settings.load().home / "evaluation"
    files = [home / f"development_{language}.jsonl" for language in ("en", "zh")]
    if not all(f.exists() for f in files):
        export(home)
    sets = [load(str(f), limit=given.problems) for f in files]
    problems = [p for pair in zip(*sets, strict=True) for p in pair]  # both languages in turn
    runtime = open_runtime(settings.load())
    try:
        for name in given.variant or VARIANTS:
            file = home / "ablation" / f"{name.replace(' ', '-')}.jsonl"
            began = time.monotonic()
            traces = run(problems, recipe(name), runtime, file, threads=THREADS)
            seconds = time.monotonic() - began
            _print({"variant": name, **figures(problems, traces), "seconds": round(seconds, 1)})
            if name == BASE:
                for line in rescored(problems, traces):
                    _print(line)
    finally:
        runtime.close()


def recipe(name: str) -> Recipe:
    """How a variant searches: to the end of its rollouts, so that any budget can be cut."""
    options = SearchOptions(strategy="auto", rollouts=ROLLOUTS, seed=SEED, early_stop=False)
    return Recipe(options=options, changes=VARIANTS[name], keep_tokens=True)


def figures(problems: Sequence[Problem], traces: Sequence[Trace]) -> dict[str, Any]:
    """Accuracy at each budget and at the end, with tokens and the 95 % interval."""
    points = curve(traces, Grader(problems))
    at = {str(b): p for b in BUDGETS if (p := at_least(points, b))}
    return {k: _point(p) for k, p in {**at, "end": points[-1]}.items()}


def _point(point: Point) -> dict[str, Any]:
    n, right = len(point.right), sum(point.right)
    low, high = wilson(right, n)
    return {
        "n": n,
        "accuracy": round(right / n, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "rollouts": point.rollouts,
        "tokens_per_problem": round(point.tokens_per_problem, 1),
    }


def rescored(problems: Sequence[Problem], traces: Sequence[Trace]) -> Iterator[dict[str, Any]]:
    """The same rollouts under every reward, and under other votes by the path's confidence."""
    grader = Grader(problems)
    for reward in REWARDS:
        yield rescore(traces, grader, reward=reward, sharpness=128.0).to_json()
    votes = [("vote", 1.0), ("best", 1.0), ("borda", 1.0), ("tree", 1.0), ("tree", 128.0)]
    for vote, power in votes + [("weighted", p) for p in (1.0, 8.0, 32.0, 64.0, 192.0)]:
        yield rescore(traces, grader, reward="since", vote=vote, sharpness=power).to_json()


def _print(line: dict[str, Any]) -> None:
    print(json.dumps(line))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
