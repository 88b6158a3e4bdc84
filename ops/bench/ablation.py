"""What each part of the search is worth: one thing changed at a time, on the development split.

    python -m ops.bench.ablation [--variant NAME ...] [--problems 250]
    python -m ops.bench.ablation --tables docs/ablation.jsonl        Markdown tables, no runs

ablation.json holds the studies: a base and its variants, as changes of SearchConfig. "gone" names
those of fields that are gone since they made no difference (commit a064bd3 had them). "tree" is
the default strategy, "paper" Marco-o1's search by steps with its whole budget. One JSON line a
variant is printed: accuracy, tokens and the paired difference to the base, with runs cut at each
of the study's cuts. Then whole runs are rescored under other rewards and votes. docs/ablation.jsonl
holds what was printed. Traces are kept under MARCO_HOME/evaluation; a second run goes on from them.

The development split is drawn by ops.pocket.samples: its questions are in no report.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

from marco_search import settings
from marco_search.evaluation.data_sets import Problem
from marco_search.evaluation.grading import Grader, Point, Stops, point, rescore
from marco_search.evaluation.report import table
from marco_search.evaluation.run import Recipe, run
from marco_search.evaluation.statistics import accuracy, paired, points, rounded
from marco_search.evaluation.traces import Trace
from marco_search.jobs import SearchOptions
from marco_search.runtime import open_runtime
from marco_search.search.rewards import EXTERNAL, REWARDS
from ops.pocket import samples
from ops.pocket.problems import Language

STUDIES: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text())
SEED, ROLLOUTS, PROBLEMS, THREADS = 5, 16, 250, 24
WHOLE, WHOLE_ROLLOUTS, WHOLE_PROBLEMS = "whole", 12, 200
"""The run without early stop that is rescored."""


def development_split(count: int) -> list[Problem]:
    """The first `count` problems of each language, in turn."""
    drawn = (samples.draw(samples.DEVELOPMENT, "normal", x, count) for x in get_args(Language))
    return samples.as_problems(p for pair in zip(*drawn, strict=True) for p in pair)


def recipe(study: Mapping[str, Any], name: str) -> Recipe:
    """How a study's base or one of its variants searches."""
    changes = study["changes"] | study["variants"].get(name, {})
    options = {"rollouts": ROLLOUTS, "seed": SEED, "overrides": changes} | study["options"]
    return Recipe(options=SearchOptions(**options))


def figures(
    study: Mapping[str, Any], traces: Sequence[Trace], base: Sequence[Trace], grader: Grader
) -> dict[str, Any]:
    """At each cut: accuracy with its 95 % interval, tokens, and what the change gained.

    A run is ended at a chance of its leader (no greater than the run's own), or after its first
    rollouts.
    """
    found, cut, cut_base = {}, _cutter(study, traces, grader), _cutter(study, base, grader)
    for at in study["cuts"]:
        mine, other = cut(at), cut_base(at)
        gain = paired(mine.right, other.right)
        gains = {"gain": gain.difference, "gain_low": gain.low, "gain_high": gain.high}
        tokens = {"tokens_per_problem": round(mine.tokens_per_problem, 1)}
        found[_label(study, at)] = rounded(accuracy(mine.right) | gains) | tokens
    return found


def _cutter(
    study: Mapping[str, Any], traces: Sequence[Trace], grader: Grader
) -> Callable[[float], Point]:
    """A run at any of the study's cuts."""
    if study["cut_at"] == "rollouts":
        return lambda at: point(traces, grader, int(at))
    stops = Stops(traces)
    return lambda at: stops.at(grader, at)


def _label(study: Mapping[str, Any], at: float) -> str:
    return f"{study['cut_at']} {at:g}"


def rescored(traces: Sequence[Trace], grader: Grader) -> Iterator[dict[str, Any]]:
    """The same rollouts under every reward, and under other votes by the path's confidence."""
    ways = [(reward, "weighted", 128.0) for reward in REWARDS if reward not in EXTERNAL]
    votes = [("vote", 1.0), ("best", 1.0), ("borda", 1.0), ("tree", 1.0), ("tree", 128.0)]
    votes += [("weighted", power) for power in (1.0, 8.0, 32.0, 64.0, 192.0)]
    for reward, vote, power in ways + [("confidence", *how) for how in votes]:
        yield rescore(traces, grader, reward=reward, vote=vote, sharpness=power).to_json()


def tables(lines: Sequence[Mapping[str, Any]]) -> str:
    """Printed lines as Markdown: each study, then the rewards and votes."""
    made = []
    for study in STUDIES.values():
        labels = [_label(study, at) for at in study["cuts"]]
        names = [study["base"], *study["variants"], *study.get("gone", ())]
        rows = [
            (line["variant"], str(line[labels[0]]["n"]), *(_cell(line[at]) for at in labels))
            for line in lines
            if line.get("variant") in names
        ]
        made.append(table(("Changed", "n", *(f"{at}: %, tokens, gain" for at in labels)), rows))
    rows = [
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
    head = ("Reward, vote", "n", "accuracy %", "AUROC", "AUROC within a problem")
    return "\n\n".join([*made, *([table(head, rows)] if rows else [])])


def _cell(at: Mapping[str, Any]) -> str:
    gain = points({"difference": at["gain"], "low": at["gain_low"], "high": at["gain_high"]})
    return f"{100 * at['accuracy']:.1f}, {at['tokens_per_problem']:.0f}, {gain}"


def measured(wanted: Iterable[str], problems: Sequence[Problem]) -> Iterator[dict[str, Any]]:
    """One line a variant, as it is measured."""
    folder, grader = settings.load().home / "evaluation" / "ablation", Grader(problems)
    with closing(open_runtime(settings.load())) as runtime:

        def traces(name: str, how: Recipe, problems: Sequence[Problem]) -> list[Trace]:
            file = folder / f"{name.replace(' ', '-')}.jsonl"
            return run(problems, how, runtime, file, threads=THREADS)

        for study in STUDIES.values():
            for name in [n for n in (study["base"], *study["variants"]) if n in wanted]:
                base = traces(study["base"], recipe(study, study["base"]), problems)
                mine = traces(name, recipe(study, name), problems)
                yield {"variant": name, **figures(study, mine, base, grader)}
        if WHOLE in wanted:
            options = SearchOptions(rollouts=WHOLE_ROLLOUTS, seed=SEED, early_stop=False)
            whole = Recipe(options=options, keep_tokens=True)
            yield from rescored(traces(WHOLE, whole, problems[:WHOLE_PROBLEMS]), grader)


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [n for study in STUDIES.values() for n in (study["base"], *study["variants"])]
    parser.add_argument("--variant", choices=[*names, WHOLE], action="append")
    parser.add_argument("--problems", type=int, default=PROBLEMS, help="a language")
    parser.add_argument("--tables", type=Path, help="print such lines as tables; run nothing")
    asked = parser.parse_args(words)
    if asked.tables:
        print(tables([json.loads(line) for line in asked.tables.read_text().splitlines()]))
        return
    for line in measured(asked.variant or [*names, WHOLE], development_split(asked.problems)):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
