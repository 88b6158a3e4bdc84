"""What each part of the search is worth: one thing changed at a time.

The base is the strategy "auto" as it was before its last change, which came out of this:
its root widened half as fast, and it stopped at a lead of 0.4.

    python -m ops.bench.ablation [--variant NAME ...] [--problems 250]

Runs on the development split, both languages; keeps traces under MARCO_HOME/evaluation and
goes on where it stopped. Prints one JSON line a variant: accuracy and tokens where the vote is
led by the strategy's own lead and by a greater one, and the difference to the base, problem by
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
from marco_search.evaluation.curves import Point, stopped
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
from ops.bench.development import export

SEED, ROLLOUTS, PROBLEMS, THREADS = 5, 16, 250, 24
BASE, WHOLE = "base", "whole"
LEADS = (0.4, 0.8)
"""The second is the one that the runs are made with: any smaller one can be cut."""
WHOLE_ROLLOUTS, WHOLE_PROBLEMS = 12, 100
"""Of the run without early stop that is rescored."""
_BASE: dict[str, Any] = {"widening": 0.5}  # fields of SearchConfig other than those of "auto"
# Name -> fields that differ from the base.
VARIANTS: dict[str, dict[str, Any]] = {
    BASE: {},
    # Reflection
    "never reflects": {"reflection": "never"},
    "reflects up to twice": {"max_reflections": 2},
    "four redos": {"reflection_width": 4},
    "steps before a reflection too": {"reflect_first": False},
    # Sampling
    "no greedy samples": {"first_temperature": None},
    "temperature 0.7": {"temperature": 0.7},
    "temperature 1.3": {"temperature": 1.3},
    # Widening
    "root widens half as fast": {"widening": 0.25},
    "root widens twice as fast": {"widening": 1.0},
    "root of four at once": {"root_width": 4},
    "width 1": {"width": 1},
    "width 4": {"width": 4},
    # Selection
    "exploration 0.1": {"exploration": 0.1},
    "exploration 2": {"exploration": 2.0},
    "PUCT": {"selection": "puct"},
    "WU-UCT, four at a time": {"virtual_loss": 0.0, "parallel": 4},
    "four at a time": {"parallel": 4},
    "values not normalised": {"normalise": False},
    "backup of the greatest value": {"backup": "max"},
    "backup half mean, half greatest": {"backup": "mixed"},
    "value of the rollout only": {"value": "rollout"},
    # Actions
    "whole thoughts": {"action": "whole"},
    "mini-step 32": {"action": "mini_step", "mini_step_tokens": 32},
    "mini-step 16": {"action": "mini_step", "mini_step_tokens": 16},
}


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--variant", choices=[*VARIANTS, WHOLE], action="append")
    parser.add_argument("--problems", type=int, default=PROBLEMS, help="a language")
    parser.add_argument("--tables", type=Path, help="run nothing: such lines as Markdown tables")
    given = parser.parse_args(words)
    if given.tables:
        print(tables([json.loads(line) for line in given.tables.read_text().splitlines()]))
        return
    home = settings.load().home / "evaluation"
    problems = development_split(home, given.problems)
    runtime = open_runtime(settings.load())
    grader, base = Grader(problems), None

    def made(name: str, problems: Sequence[Problem]) -> list[Trace]:
        file = home / "ablation" / f"{name.replace(' ', '-')}.jsonl"
        return run(problems, recipe(name), runtime, file, threads=THREADS)

    try:
        for name in given.variant or [*VARIANTS, WHOLE]:
            began = time.monotonic()
            if name == WHOLE:
                few = problems[: 2 * WHOLE_PROBLEMS]
                for line in rescored(few, made(WHOLE, few)):
                    _print(line)
                continue
            base = base or made(BASE, problems)
            traces = base if name == BASE else made(name, problems)
            seconds = round(time.monotonic() - began, 1)
            _print({"variant": name, **figures(traces, base, grader), "seconds": seconds})
    finally:
        runtime.close()


def development_split(home: Path, count: int) -> list[Problem]:
    """The first `count` problems of each language, in turn."""
    files = [home / f"development_{language}.jsonl" for language in ("en", "zh")]
    if not all(f.exists() for f in files):
        export(home)
    sets = [load(str(f), limit=count) for f in files]
    return [p for pair in zip(*sets, strict=True) for p in pair]


def recipe(name: str) -> Recipe:
    """How a variant searches: to a lead later than any it is looked at."""
    if name == WHOLE:
        options = SearchOptions(rollouts=WHOLE_ROLLOUTS, seed=SEED, early_stop=False)
        return Recipe(options=options, changes=_BASE, keep_tokens=True)
    options = SearchOptions(rollouts=ROLLOUTS, seed=SEED)
    return Recipe(options=options, changes={**_BASE, **VARIANTS[name], "lead": max(LEADS)})


def figures(traces: Sequence[Trace], base: Sequence[Trace], grader: Grader) -> dict[str, Any]:
    """At each lead: accuracy with its 95 % interval, tokens, and what the change gained."""
    return {
        f"lead {lead}": _point(stopped(traces, grader, lead), stopped(base, grader, lead))
        for lead in LEADS
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
    """What `main` printed, as Markdown: the variants, then the rewards and votes."""
    head = ("Changed", "n", *(f"lead {lead}: %, tokens, gain" for lead in LEADS))
    rows = [
        (line["variant"], str(line[f"lead {LEADS[0]}"]["n"]), *map(_cell, _at_leads(line)))
        for line in lines
        if "variant" in line
    ]
    scored = [line for line in lines if "reward" in line]
    scores = [
        (
            f"{line['reward']}, {line['vote']}, power {line['sharpness']:g}",
            str(line["n"]),
            f"{100 * line['accuracy']:.1f} ({100 * line['low']:.0f} to {100 * line['high']:.0f})",
            f"{line['auroc']:.2f}",
            f"{line['auroc_within']:.2f}",
        )
        for line in scored
    ]
    rewards = ("Reward, vote", "n", "accuracy %", "AUROC", "AUROC within a problem")
    return f"{table(head, rows)}\n\n{table(rewards, scores)}"


def _at_leads(line: dict[str, Any]) -> list[dict[str, Any]]:
    return [line[f"lead {lead}"] for lead in LEADS]


def _cell(at: dict[str, Any]) -> str:
    gain = f"{100 * at['gain']:+.1f} ({100 * at['gain_low']:+.1f} to {100 * at['gain_high']:+.1f})"
    return f"{100 * at['accuracy']:.1f}, {at['tokens_per_problem']:.0f}, {gain}"


def _print(line: dict[str, Any]) -> None:
    print(json.dumps(line))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
