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
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from statistics import fmean
from typing import Any

import jinja2

from marco_search import settings
from marco_search.cli.evaluation import progress_text
from marco_search.evaluation import grading, report, statistics
from marco_search.evaluation.data_sets import Problem, from_row, load
from marco_search.evaluation.grading import Grader, Point, chosen
from marco_search.evaluation.plots import accuracy_over_confidence, accuracy_over_tokens, plot
from marco_search.evaluation.run import Progress, Recipe, run
from marco_search.evaluation.statistics import Paired, diversity, paired, wilson
from marco_search.evaluation.traces import Trace, read, with_vote
from marco_search.jobs import SearchOptions
from marco_search.kinds import kind_of
from marco_search.runtime import open_runtime
from marco_search.runtime.base import Runtime
from marco_search.search.votes import Aggregation, Candidate, RankedAnswer, rank
from ops.pocket.texts import HOBBIES, OPEN_ENDED

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
GREEDY = ("cot", "cot-reflect")
BASELINES = ("self-consistency", "best-of-n")
PLOTTED = (*GREEDY, *BASELINES, "sharpened vote", "step", "mini-step-32", WINNER)
PAPER_MARGINS = {"en": 0.048, "zh": 0.112}
"""Best MCTS strategy less greedy CoT in the paper (90.4 - 85.6 and 82.4 - 71.2 points)."""


def recipe(**options: Any) -> Recipe:
    """A strategy with the seed of this report."""
    return Recipe(options=SearchOptions(seed=SEED, **options))


def recipes(rollouts: int) -> dict[str, Recipe]:
    """Run name to recipe, in the order in which they are made. Only "auto" stops by itself."""
    whole: dict[str, Any] = {"rollouts": rollouts, "early_stop": False}
    few = whole | {"rollouts": min(rollouts, FEW), "reflection": "always"}
    trees = ("step", "mini-step-64", "mini-step-32", "mini-step-16", "mini-step-8")
    return {
        "cot": recipe(strategy="cot"),
        "cot-reflect": recipe(strategy="cot", reflection="always"),
        "auto": recipe(strategy="auto"),
        "samples": recipe(strategy="vote", **whole),
        **{name: recipe(strategy=name, **whole) for name in trees},
        "samples-reflect": recipe(strategy="vote", **few),
        "step-reflect": recipe(strategy="step", reflection="branch", **whole),
        "mini-step-32-reflect": recipe(strategy="mini-step-32", reflection="branch", **whole),
        "auto-whole": recipe(strategy="auto", **whole),
    }


TEXT_RECIPES = {
    "cot": recipe(strategy="cot"),
    "auto": recipe(strategy="auto", rollouts=8, early_stop=False),
}


def text_problems(kind: str, count: int | None = None) -> list[Problem]:
    """The held-out phrases, or prompts with many good answers in both languages."""
    if kind == "translation":
        return load("heldout_translation", limit=count)
    prompts = [
        OPEN_ENDED[language]["gift"].format(hobby=name)
        for hobby in HOBBIES
        for language, (name, _) in hobby.items()
    ]
    prompts += [OPEN_ENDED["en"]["sum"].format(total=total) for total in range(20, 200, 15)]
    return [from_row({"prompt": prompt}, "open-ended") for prompt in prompts[:count]]


class Results:
    """All runs over one set; those that are not complete are left out."""

    def __init__(self, folder: Path, name: str, problems: list[Problem], rollouts: int) -> None:
        self.name, self.problems, self.grader = name, problems, Grader(problems)
        self.traces: dict[str, list[Trace]] = {}
        self.missing, self.seconds = list[str](), dict[str, float]()
        for run_name in recipes(rollouts):
            file = folder / name / f"{run_name}.jsonl"
            if traces := complete(file, problems):
                self.traces[run_name] = traces
            else:
                self.missing.append(run_name)
            if (clock := file.with_suffix(".seconds.json")).exists():
                self.seconds[run_name] = json.loads(clock.read_text())
        self.votes = {
            vote: with_vote(self.traces[samples], choice, power)
            for vote, (samples, choice, power) in FLAT.items()
            if samples in self.traces
        }
        trees = [run for run in self.traces if not run.startswith(("cot", "samples"))]
        self.trees = sorted(trees, key=WINNER.__eq__)  # the winner last

    def curve(self, strategy: str) -> list[Point]:
        """The accuracy of a run, or of a vote over samples, at each number of rollouts."""
        return grading.curve((self.traces | self.votes).get(strategy, []), self.grader)

    def rows(self) -> list[report.Row]:
        """The table: greedy, the baselines at the winner's tokens and whole, the trees."""
        parts: list[tuple[str, list[Trace], int | None]]
        parts = [(run, self.traces[run], None) for run in GREEDY if run in self.traces]
        winner = self.curve(WINNER)
        for name, traces in self.votes.items():
            points = self.curve(name)
            at = winner and grading.at_least(points, winner[-1].tokens_per_problem)
            numbers = sorted({p.rollouts for p in (at or points[-1], points[-1])})
            parts += [(f"{name}, n = {n}", traces, n) for n in numbers]
        for tree in self.trees:
            traces = self.traces[tree]
            if tree != WINNER and max(len(t.rollouts) for t in traces) > FEW:
                parts.append((f"{tree}, {FEW} rollouts", traces, FEW))
            parts.append((tree, traces, None))
        return [report.row(name, traces, self.grader, rollouts=n) for name, traces, n in parts]

    def less(self, strategy: str, baseline: str) -> tuple[Point, Paired] | None:
        """`strategy` less a baseline with at least as many tokens, or all that it has."""
        mine, theirs = self.curve(strategy), self.curve(baseline)
        if not mine or not theirs:
            return None
        other = grading.at_least(theirs, mine[-1].tokens_per_problem) or theirs[-1]
        return other, paired(mine[-1].right, other.right)

    def comparisons(self) -> list[tuple[str, str, Point, Paired]]:
        """Trees against baselines at equal generated tokens, problem by problem."""
        pairs = [(t, b) for t in reversed(self.trees) for b in (FLAT if t == WINNER else BASELINES)]
        return [(t, b, *found) for t, b in pairs if (found := self.less(t, b))]


def complete(file: Path, problems: Sequence[Problem]) -> list[Trace]:
    """The traces of all problems; none if any is missing."""
    found = {t.key: t for t in read(file)} if file.exists() else {}  # the newest of a problem
    return [found[p.key] for p in problems] if all(p.key in found for p in problems) else []


def goals(sets: Sequence[Results]) -> Iterator[tuple[str, bool, str]]:
    """All goals, set before measuring, whose runs are complete: (text, reached, measured)."""
    ready = [s for s in sets if s.curve(WINNER) and s.curve("samples")]
    for results in ready:
        margin = PAPER_MARGINS[results.name]
        for greedy in results.curve("cot"):
            gain = paired(results.curve(WINNER)[-1].right, greedy.right)
            text = f"over greedy CoT by at least {100 * margin:.1f} points, the interval clear of 0"
            reached = gain.difference >= margin and gain.low > 0
            yield f"{results.name}: {text}", reached, points(gain)
    if len(ready) == len(sets):
        clear = {s.name for s in sets}
        for name in BASELINES:
            gains = {s.name: found[1] for s in sets if (found := s.less(WINNER, name))}
            clear &= {language for language, gain in gains.items() if gain.low > 0}
            text = f"At equal tokens at least as accurate as {name} on both languages"
            measured = "; ".join(f"{language}: {points(gain)}" for language, gain in gains.items())
            yield text, all(gain.difference >= 0 for gain in gains.values()), measured
        text = "At equal tokens better than both on at least one language, the paired interval"
        yield f"{text} clear of 0", bool(clear), f"clear on: {', '.join(sorted(clear)) or 'none'}"
    for results in ready:
        best = max(p.accuracy for p in results.curve("self-consistency"))
        mine = results.curve(WINNER)[-1].accuracy
        yield _half_the_tokens(results, mine, f"`{WINNER}`'s accuracy")
        yield _half_the_tokens(results, best, "self-consistency's best")


def _half_the_tokens(results: Results, accuracy: float, whose: str) -> tuple[str, bool, str]:
    samples = results.curve("self-consistency")
    theirs = grading.tokens_to_reach(samples, accuracy)
    mine = grading.tokens_to_reach(results.curve(WINNER), accuracy)
    ratio = mine / theirs if mine and theirs else None
    text = f"{results.name}: half the tokens of self-consistency for the same accuracy, {whose}"
    costs = [f"{n:.0f} tokens" if n else "does not reach it" for n in (mine, theirs)]
    measured = f"`{WINNER}` {costs[0]}, self-consistency up to n = {len(samples)} {costs[1]}"
    share = "" if ratio is None else f": {100 * ratio:.0f} %"
    reached = bool(mine and not theirs) or (ratio is not None and ratio <= 0.5)
    return f"{text} ({100 * accuracy:.1f} %)", reached, measured + share


def points(gain: Paired) -> str:
    """A gain in percentage points with its interval."""
    low, high = 100 * gain.low, 100 * gain.high
    return f"{100 * gain.difference:+.1f} points ({low:+.1f} to {high:+.1f})"


def text_results(folder: Path, count: int | None) -> dict[str, Any]:
    """The figures of translation and open-ended jobs, of the runs that are complete."""
    found: dict[str, Any] = {}
    for kind, figures in {"translation": _translation, "open-ended": _open_ended}.items():
        problems = text_problems(kind, count)
        section: dict[str, Any] = {"n": len(problems), "seed": SEED, "strategies": []}
        for name in TEXT_RECIPES:
            if traces := complete(folder / kind / f"{name}.jsonl", problems):
                one = figures(problems, traces)
                for shared in {"signature", "example"} & one.keys():
                    section[shared] = one.pop(shared)  # the last strategy's stand for all
                tokens = round(fmean(t.tokens for t in traces), 1)
                section["strategies"] += [{"strategy": name, **one, "tokens_per_problem": tokens}]
        if section["strategies"]:
            found[kind.replace("-", "_")] = section
    return found


def _translation(problems: Sequence[Problem], traces: Sequence[Trace]) -> dict[str, Any]:
    outputs = [t.answers.get(chosen(t) or "", "") for t in traces]
    accepted = [p.expected for p in problems]
    chrf, signature = statistics.chrf(outputs, accepted)
    right, n = statistics.exact_matches(outputs, accepted), len(outputs)
    low, high = wilson(right, n)
    return {
        "chrf": round(chrf, 2),
        "exact": round(right / n, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "distinct": fmean(map(len, map(_distinct, problems, traces))),
        "signature": signature,
    }


def _open_ended(problems: Sequence[Problem], traces: Sequence[Trace]) -> dict[str, Any]:
    ranked = list(map(_distinct, problems, traces))
    texts = [[t.answers[a.key] for a in found] for found, t in zip(ranked, traces, strict=True)]
    spread = [diversity(outputs) for outputs in texts if len(outputs) > 1]
    best = zip(ranked[0][:5], texts[0][:5], strict=True)
    return {
        "distinct": fmean(map(len, ranked)),
        "merged": fmean(len(t.answers) - len(a) for a, t in zip(ranked, traces, strict=True)),
        "diversity": fmean(spread) if spread else 0.0,
        "example": {
            "prompt": problems[0].job.subject,
            "answers": [
                {"text": text, "confidence": answer.confidence, "votes": answer.votes}
                for answer, text in best
            ],
        },
    }


def _distinct(problem: Problem, trace: Trace) -> list[RankedAnswer]:
    """The distinct answers, best first, near-duplicates merged."""
    rollouts = trace.answered
    keys = kind_of(problem.job).merge([(str(r.answer), r.path_confidence) for r in rollouts])
    values = [r.path_confidence for r in rollouts]
    candidates = list(map(Candidate, keys, values, range(len(values))))
    return rank(candidates, Aggregation.WEIGHTED, sharpness=trace.sharpness)


def write_report(folder: Path, docs: Path, count: int, rollouts: int) -> list[Path]:
    """Write results.md, results.json and the plots. Incomplete runs are left out and named."""
    docs.mkdir(parents=True, exist_ok=True)
    sets = [Results(folder, n, load(SETS[n], limit=count), rollouts) for n in SETS]
    fields = ("text", "reached", "measured")
    found = {
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
        "goals": [dict(zip(fields, goal, strict=True)) for goal in goals(sets)],
        "texts": text_results(folder, count),
    }
    data, page = docs / "results.json", docs / "results.md"
    data.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n")
    loader = jinja2.FileSystemLoader(HERE)
    template = jinja2.Environment(loader=loader, trim_blocks=True, keep_trailing_newline=True)
    about = {"rollouts": rollouts, "few": min(rollouts, FEW), "winner": WINNER}
    about |= {"minutes": sum(sum(s.seconds.values()) for s in sets) / 60}
    tools = {"sets": sets, "report": report, "paired": paired, "points": points}
    page.write_text(template.get_template("results.md.j2").render(found | about | tools))
    made = [s for s in sets if s.traces]
    lines = {
        f"{SETS[s.name]}, n = {len(s.problems)}": {
            name: line for name in PLOTTED if (line := s.curve(name))
        }
        for s in made
    }
    bins = {
        SETS[s.name]: report.bins_of(s.traces["samples"], s.grader)
        for s in made
        if "samples" in s.traces
    }
    files = (
        plot(accuracy_over_tokens, lines, docs / "plots" / "accuracy-over-tokens") if lines else []
    )
    files += plot(accuracy_over_confidence, bins, docs / "plots" / "calibration") if bins else []
    return [page, data, *files]


def make(how: Recipe, problems: Sequence[Problem], runtime: Runtime, file: Path) -> None:
    """One run over one set; its seconds are added up beside its traces."""
    printed_at = 0.0

    def show(progress: Progress) -> None:
        nonlocal printed_at
        if progress.done == progress.total or time.monotonic() - printed_at > 10:
            printed_at = time.monotonic()
            about = f"{file.parent.name} {file.stem}: {progress_text(progress)}"
            print(about, file=sys.stderr, flush=True)

    began, beside = time.monotonic(), file.with_suffix(".seconds.json")
    try:
        run(problems, how, runtime, file, threads=THREADS, on_progress=show)
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
        wanted = asked.run or [*known, "texts"]
        with closing(runtime or open_runtime(settings.load())) as opened:
            for name in [n for n in wanted if n in known]:
                for language in asked.language or SETS:
                    problems = load(SETS[language], limit=asked.problems)
                    make(known[name], problems, opened, folder / language / f"{name}.jsonl")
            for kind in ("translation", "open-ended") if "texts" in wanted else ():
                problems = text_problems(kind, asked.problems)
                for name, how in TEXT_RECIPES.items():
                    make(how, problems, opened, folder / kind / f"{name}.jsonl")
    if not asked.no_report:
        print(*write_report(folder, asked.docs, asked.problems, asked.rollouts), sep="\n")


if __name__ == "__main__":
    main()
