"""The paper's table in miniature: run what is missing, then write docs/results.* and the plots.

    python -m ops.bench.paper_table                     all runs, then the report
    python -m ops.bench.paper_table --language en --run auto --run samples     some parts
    python -m ops.bench.paper_table --report            only the report, from what is there
    python -m ops.bench.paper_table --rollouts 8        a quarter of the time, no Test@32

Every run keeps its traces under MARCO_HOME/evaluation/paper, and goes on where it stopped. A run
gives a strategy's figures at every smaller budget too, and independent samples serve majority
vote, best of n and weighted vote alike, so few runs are needed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2

from marco_search import settings
from marco_search.cli.evaluation import progress_text
from marco_search.evaluation.curves import Point, at_least, curve, tokens_to_reach
from marco_search.evaluation.data_sets import Problem, from_row, load
from marco_search.evaluation.grading import Grader, chosen
from marco_search.evaluation.plots import accuracy_over_tokens, calibration_plot
from marco_search.evaluation.report import (
    PAIRED_HEAD,
    Row,
    bins_of,
    markdown_paired,
    markdown_rows,
    row,
    table,
)
from marco_search.evaluation.run import Progress, Recipe, run
from marco_search.evaluation.statistics import (
    Paired,
    chrf,
    diversity,
    exact_matches,
    paired,
    wilson,
)
from marco_search.evaluation.traces import Trace, read, with_vote
from marco_search.jobs import SearchOptions
from marco_search.kinds import kind_of
from marco_search.runtime import open_runtime
from marco_search.runtime.base import Runtime
from marco_search.search.votes import Aggregation, Candidate, RankedAnswer, rank
from ops.pocket.texts import GIFT_PROMPTS, HOBBIES, SUM_PROMPTS

HERE = Path(__file__).parent
SETS = {"en": "heldout_en", "zh": "heldout_zh"}
PROBLEMS, ROLLOUTS = 250, 32
FEW = 8
"""Of samples that all reflect: each costs as much as two or three others."""
SEED = 20260
"""Of every search; other than any used while the search was being chosen."""
THREADS = 24
"""Searches at once; with 8 branches each they fill the engine's batches."""
WINNER = "auto"
# Name in the report -> (run of independent samples, how they are put to the vote, power).
FLAT = {
    "self-consistency": ("samples", "vote", 1.0),
    "best-of-n": ("samples", "best", 1.0),
    "sharpened vote": ("samples", "weighted", 128.0),
    "self-consistency, reflecting": ("samples-reflect", "vote", 1.0),
    "best-of-n, reflecting": ("samples-reflect", "best", 1.0),
}
BASELINES = ("self-consistency", "best-of-n")
PLOTTED = ("cot", "cot-reflect", *BASELINES, "sharpened vote", "step", "mini-step-32", WINNER)
PAPER_MARGINS = {"en": 0.048, "zh": 0.112}
"""Best MCTS strategy less greedy CoT in the paper (90.4 - 85.6 and 82.4 - 71.2 points)."""


def recipes(rollouts: int) -> dict[str, Recipe]:
    """Run name to recipe, in the order in which they are made. Only "auto" stops by itself."""
    whole = {"rollouts": rollouts, "early_stop": False}
    few = whole | {"rollouts": min(rollouts, FEW)}
    trees = ("step", "mini-step-64", "mini-step-32", "mini-step-16", "mini-step-8")
    options: dict[str, dict[str, Any]] = {
        "cot": {"strategy": "cot"},
        "cot-reflect": {"strategy": "cot", "reflection": "always"},
        "auto": {"strategy": "auto"},
        "samples": whole | {"strategy": "vote"},
        **{name: whole | {"strategy": name} for name in trees},
        "samples-reflect": few | {"strategy": "vote", "reflection": "always"},
        "step-reflect": whole | {"strategy": "step", "reflection": "branch"},
        "mini-step-32-reflect": whole | {"strategy": "mini-step-32", "reflection": "branch"},
        "auto-whole": whole | {"strategy": "auto"},
    }
    return {name: _recipe(**told) for name, told in options.items()}


def _recipe(**options: Any) -> Recipe:
    return Recipe(options=SearchOptions(seed=SEED, **options))


TEXT_RECIPES = {
    "cot": _recipe(strategy="cot"),
    "auto": _recipe(strategy="auto", rollouts=8, early_stop=False),
}


def text_problems(kind: str, count: int | None = None) -> list[Problem]:
    """The held-out phrases, or prompts with many good answers in both languages."""
    if kind == "translation":
        return load("heldout_translation", limit=count)
    prompts = [
        GIFT_PROMPTS[language].format(hobby=name)
        for hobby in HOBBIES
        for language, (name, _) in hobby.items()
    ]
    prompts += [SUM_PROMPTS["en"].format(total=total) for total in range(20, 200, 15)]
    return [from_row({"prompt": prompt}, "open-ended") for prompt in prompts[:count]]


# -- One set of problems ----------------------------------------------------------------


class Results:
    """All runs over one set; those that are not complete are left out."""

    def __init__(self, folder: Path, name: str, problems: list[Problem], rollouts: int) -> None:
        self.name, self.problems, self.grader = name, problems, Grader(problems)
        runs = list(recipes(rollouts))
        found = {run: _read(folder / name / f"{run}.jsonl", problems) for run in runs}
        self.traces = {run: traces for run, traces in found.items() if traces}
        self.missing = [run for run in runs if run not in self.traces]
        files = [(run, folder / name / f"{run}.seconds.json") for run in runs]
        self.seconds = {run: json.loads(f.read_text()) for run, f in files if f.exists()}
        flat = ("cot", "samples")
        trees = [run for run in self.traces if not run.startswith(flat)]
        self.trees = sorted(trees, key=lambda run: run == WINNER)  # the winner last

    def curve(self, strategy: str) -> list[Point]:
        """The accuracy of a run, or of a vote over samples, at each number of rollouts."""
        if strategy not in FLAT:
            return curve(self.traces.get(strategy, []), self.grader)
        samples, choice, power = FLAT[strategy]
        return curve(with_vote(self.traces.get(samples, []), choice, power), self.grader)

    def end(self, strategy: str) -> Point | None:
        """The whole run."""
        return next(reversed(self.curve(strategy)), None)

    def rows(self) -> list[Row]:
        """The table: greedy, the baselines at the winner's tokens and whole, the trees."""
        greedy = [run for run in ("cot", "cot-reflect") if run in self.traces]
        found = [row(run, self.traces[run], self.grader) for run in greedy]
        for name, (samples, choice, power) in FLAT.items():
            for n in sorted({p.rollouts for p in self._points(name)}):
                traces = with_vote(self.traces[samples], choice, power)
                found.append(row(f"{name}, n = {n}", traces, self.grader, rollouts=n))
        for tree in self.trees:
            traces = self.traces[tree]
            if tree != WINNER and max(len(t.rollouts) for t in traces) > FEW:
                found.append(row(f"{tree}, {FEW} rollouts", traces, self.grader, rollouts=FEW))
            found.append(row(tree, traces, self.grader))
        return found

    def _points(self, baseline: str) -> list[Point]:
        points, winner = self.curve(baseline), self.end(WINNER)
        at = winner and at_least(points, winner.tokens_per_problem)
        return [at or points[-1], points[-1]] if points else []

    def less(self, strategy: str, baseline: str) -> tuple[Point, Paired] | None:
        """`strategy` less a baseline with at least as many tokens, or all that it has."""
        mine, theirs = self.end(strategy), self.curve(baseline)
        if not mine or not theirs:
            return None
        other = at_least(theirs, mine.tokens_per_problem) or theirs[-1]
        return other, paired(mine.right, other.right)

    @cached_property
    def comparisons(self) -> list[tuple[str, Point, Paired]]:
        """Trees against baselines at equal generated tokens, problem by problem."""
        pairs = [
            (tree, name)
            for tree in reversed(self.trees)
            for name in (FLAT if tree == WINNER else BASELINES)
        ]
        found = [(f"{tree} less {name}", self.less(tree, name)) for tree, name in pairs]
        return [(what, *result) for what, result in found if result]

    @property
    def rival(self) -> dict[str, Any] | None:
        """One greedy thought that is always made to reflect, beside the winner."""
        mine, rival = self.end(WINNER), self.end("cot-reflect")
        if not mine or not rival:
            return None
        more = mine.tokens_per_problem / rival.tokens_per_problem - 1
        gain = _points(paired(mine.right, rival.right))
        return {"point": rival, "gain": gain, "more_tokens": more}


def _read(file: Path, problems: Sequence[Problem]) -> list[Trace]:
    """The traces of all problems; none if any is missing."""
    found = {t.key: t for t in read(file)} if file.exists() else {}  # the newest of a problem
    return [found[p.key] for p in problems] if all(p.key in found for p in problems) else []


# -- Goals that were set before measuring -----------------------------------------------


def goals(sets: Sequence[Results]) -> Iterator[dict[str, Any]]:
    """All goals whose runs are complete: text, reached, measured."""
    ready = [s for s in sets if s.curve(WINNER) and s.curve("samples")]
    for results in ready:
        mine, greedy, margin = results.end(WINNER), results.end("cot"), PAPER_MARGINS[results.name]
        if mine and greedy:
            gain = paired(mine.right, greedy.right)
            text = f"{results.name}: over greedy CoT by at least {100 * margin:.1f} points, "
            reached = gain.difference >= margin and gain.low > 0
            yield _goal(text + "the interval clear of 0", reached, _points(gain))
    if len(ready) == len(sets):
        yield from _against_baselines(ready)
    for results in ready:
        points = results.curve("self-consistency")
        best = max(p.accuracy for p in points)
        yield _half_the_tokens(
            results, results.curve(WINNER)[-1].accuracy, f"`{WINNER}`'s accuracy"
        )
        yield _half_the_tokens(results, best, "self-consistency's best")


def _goal(text: str, reached: bool, measured: str) -> dict[str, Any]:
    return {"text": text, "reached": reached, "measured": measured}


def _against_baselines(sets: Sequence[Results]) -> Iterator[dict[str, Any]]:
    found = {
        name: {s.name: gain for s in sets if (gain := s.less(WINNER, name))} for name in BASELINES
    }
    for name, gains in found.items():
        text = f"At equal tokens at least as accurate as {name} on both languages"
        reached = all(gain.difference >= 0 for _, gain in gains.values())
        shown = [f"{language}: {_points(gain)}" for language, (_, gain) in gains.items()]
        yield _goal(text, reached, "; ".join(shown))
    clear = [s.name for s in sets if all(gains[s.name][1].low > 0 for gains in found.values())]
    text = "At equal tokens better than both on at least one language, "
    measured = f"clear on: {', '.join(clear) or 'none'}"
    yield _goal(text + "the paired interval clear of 0", bool(clear), measured)


def _half_the_tokens(results: Results, accuracy: float, whose: str) -> dict[str, Any]:
    points = results.curve("self-consistency")
    theirs = tokens_to_reach(points, accuracy)
    mine = tokens_to_reach(results.curve(WINNER), accuracy)
    ratio = mine / theirs if mine and theirs else None
    text = f"{results.name}: half the tokens of self-consistency for the same accuracy, {whose} "
    measured = (
        f"`{WINNER}` {_tokens(mine)}, self-consistency up to n = {len(points)} {_tokens(theirs)}"
    )
    reached = bool(mine and not theirs) or (ratio is not None and ratio <= 0.5)
    share = "" if ratio is None else f": {100 * ratio:.0f} %"
    return _goal(f"{text}({100 * accuracy:.1f} %)", reached, measured + share)


def _tokens(needed: float | None) -> str:
    return "does not reach it" if needed is None else f"{needed:.0f} tokens"


def _points(gain: Paired) -> str:
    low, high = 100 * gain.low, 100 * gain.high
    return f"{100 * gain.difference:+.1f} points ({low:+.1f} to {high:+.1f})"


# -- Translation and open-ended jobs ----------------------------------------------------


def text_results(folder: Path, count: int | None) -> dict[str, Any]:
    """The figures of both sections, of the runs that are complete."""
    found: dict[str, Any] = {}
    for kind, figures in {"translation": _translation, "open-ended": _open_ended}.items():
        problems = text_problems(kind, count)
        runs = {name: _read(folder / kind / f"{name}.jsonl", problems) for name in TEXT_RECIPES}
        section = [figures(name, problems, traces) for name, traces in runs.items() if traces]
        if section:
            # The last strategy's example and signature stand for all.
            shared = {
                k: one.pop(k) for one in section for k in ("signature", "example") if k in one
            }
            about = {"n": len(problems), "seed": SEED}
            found[kind.replace("-", "_")] = about | shared | {"strategies": section}
    return found


def _ranked(problem: Problem, trace: Trace) -> list[RankedAnswer]:
    """The distinct answers, best first, near-duplicates merged."""
    rollouts = [r for r in trace.rollouts if r.answer is not None]
    keys = kind_of(problem.job).merge([(str(r.answer), r.path_confidence) for r in rollouts])
    candidates = [
        Candidate(key=key, value=r.path_confidence, rollout_id=i)
        for i, (key, r) in enumerate(zip(keys, rollouts, strict=True))
    ]
    return rank(candidates, Aggregation.WEIGHTED, sharpness=trace.sharpness)


def _translation(name: str, problems: Sequence[Problem], traces: Sequence[Trace]) -> dict[str, Any]:
    answers = [chosen(t.rollouts, t.choice, t.sharpness) for t in traces]
    outputs = [t.answers[a] if a is not None else "" for a, t in zip(answers, traces, strict=True)]
    accepted = [p.expected for p in problems]
    score, signature = chrf(outputs, accepted)
    right = exact_matches(outputs, accepted)
    low, high = wilson(right, len(outputs))
    return {
        "strategy": name,
        "chrf": round(score, 2),
        "exact": round(right / len(outputs), 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "distinct": _mean([len(_ranked(p, t)) for p, t in zip(problems, traces, strict=True)]),
        "tokens_per_problem": round(_mean([t.tokens for t in traces]), 1),
        "signature": signature,
    }


def _open_ended(name: str, problems: Sequence[Problem], traces: Sequence[Trace]) -> dict[str, Any]:
    ranked = [_ranked(p, t) for p, t in zip(problems, traces, strict=True)]
    written = [len({r.answer for r in t.rollouts} - {None}) for t in traces]
    texts = [[t.answers[a.key] for a in found] for found, t in zip(ranked, traces, strict=True)]
    best = list(zip(ranked[0], texts[0], strict=True))[:5]
    answers = [{"text": text, "confidence": a.confidence, "votes": a.votes} for a, text in best]
    return {
        "strategy": name,
        "distinct": _mean([len(found) for found in ranked]),
        "merged": _mean([n - len(found) for n, found in zip(written, ranked, strict=True)]),
        "diversity": _mean([diversity(outputs) for outputs in texts if len(outputs) > 1]),
        "tokens_per_problem": round(_mean([t.tokens for t in traces]), 1),
        "example": {"prompt": problems[0].job.subject, "answers": answers},
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


# -- Files ------------------------------------------------------------------------------


def write_report(folder: Path, docs: Path, count: int, rollouts: int) -> list[Path]:
    """Write results.md, results.json and the plots. Incomplete runs are left out and named."""
    docs.mkdir(parents=True, exist_ok=True)
    sets = [Results(folder, n, load(SETS[n], limit=count), rollouts) for n in SETS]
    texts = text_results(folder, count)
    reached = list(goals(sets))
    (docs / "results.json").write_text(
        json.dumps(_data(sets, reached, texts, rollouts), ensure_ascii=False, indent=1) + "\n"
    )
    loader = jinja2.FileSystemLoader(HERE)
    template = jinja2.Environment(loader=loader, trim_blocks=True, keep_trailing_newline=True)
    text = template.get_template("results.md.j2").render(
        sets=sets, goals=reached, texts=texts, rollouts=rollouts, few=min(rollouts, FEW), seed=SEED,
        winner=WINNER, minutes=sum(sum(s.seconds.values()) for s in sets) / 60,
        markdown_rows=markdown_rows, comparisons=_comparison_table,
    )  # fmt: skip
    (docs / "results.md").write_text(text)
    return [docs / "results.md", docs / "results.json", *_plots(sets, docs / "plots")]


def _comparison_table(results: Results) -> str:
    lines = [
        markdown_paired(
            f"{what} (n = {point.rollouts}, {point.tokens_per_problem:.0f} tokens)", found
        )
        for what, point, found in results.comparisons
    ]
    return table(PAIRED_HEAD, lines)


def _data(
    sets: Sequence[Results],
    reached: list[dict[str, Any]],
    texts: Mapping[str, Any],
    rollouts: int,
) -> dict[str, Any]:
    return {
        "command": f'make paper-table ARGS="--rollouts {rollouts}"',
        "seed": SEED,
        "seconds": {s.name: s.seconds for s in sets},
        "results": {s.name: {r.strategy: r.to_json() for r in s.rows()} for s in sets},
        "curves": {
            s.name: {
                name: [
                    [p.rollouts, round(p.tokens_per_problem, 1), round(p.accuracy, 4)]
                    for p in s.curve(name)
                ]
                for name in (*FLAT, *s.trees)
            }
            for s in sets
        },
        "goals": reached,
        "texts": texts,
    }


def _plots(sets: Sequence[Results], folder: Path) -> list[Path]:
    sets = [s for s in sets if s.traces]
    curves = {
        f"{SETS[s.name]}, n = {len(s.problems)}": {
            name: points for name in PLOTTED if (points := s.curve(name))
        }
        for s in sets
    }
    samples = [s for s in sets if "samples" in s.traces]
    bins = {SETS[s.name]: bins_of(s.traces["samples"], s.grader) for s in samples}
    files = accuracy_over_tokens(curves, folder / "accuracy-over-tokens") if sets else []
    return files + (calibration_plot(bins, folder / "calibration") if bins else [])


# -- Runs -------------------------------------------------------------------------------


def make(recipe: Recipe, problems: Sequence[Problem], runtime: Runtime, file: Path) -> None:
    """One run over one set; its seconds are added up beside its traces."""
    shown = 0.0

    def show(progress: Progress) -> None:
        nonlocal shown
        if progress.done == progress.total or time.monotonic() - shown > 10:
            shown = time.monotonic()
            about = f"{file.parent.name} {file.stem}: {progress_text(progress)}"
            print(about, file=sys.stderr, flush=True)

    began, beside = time.monotonic(), file.with_suffix(".seconds.json")
    try:
        run(problems, recipe, runtime, file, threads=THREADS, on_progress=show)
    finally:
        before = json.loads(beside.read_text()) if beside.exists() else 0.0
        beside.write_text(json.dumps(round(before + time.monotonic() - began, 1)))


def main(words: Sequence[str] | None = None, *, runtime: Runtime | None = None) -> None:
    """The command line. `runtime` is used instead of the one that the settings name."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--language", choices=SETS, action="append")
    parser.add_argument("--run", choices=[*recipes(ROLLOUTS), "texts"], action="append")
    parser.add_argument("--rollouts", type=int, default=ROLLOUTS, help="of each run")
    parser.add_argument("--problems", type=int, default=PROBLEMS, help="a set")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--no-report", action="store_true", help="write nothing")
    parser.add_argument("--docs", type=Path, default=HERE.parents[1] / "docs")
    asked = parser.parse_args(words)
    folder = settings.load().home / "evaluation" / "paper"
    if not asked.report:
        known = recipes(asked.rollouts)
        with closing(runtime or open_runtime(settings.load())) as opened:
            for name in [n for n in asked.run or known if n in known]:
                for language in asked.language or SETS:
                    problems = load(SETS[language], limit=asked.problems)
                    make(known[name], problems, opened, folder / language / f"{name}.jsonl")
            for kind in (
                ("translation", "open-ended") if "texts" in (asked.run or ["texts"]) else ()
            ):
                for name, recipe in TEXT_RECIPES.items():
                    problems = text_problems(kind, asked.problems)
                    make(recipe, problems, opened, folder / kind / f"{name}.jsonl")
    if not asked.no_report:
        print(*write_report(folder, asked.docs, asked.problems, asked.rollouts), sep="\n")


if __name__ == "__main__":
    main()
