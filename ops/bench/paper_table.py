"""The tree against its rivals at equal tokens: run what is missing, then write docs/results.*.

    python -m ops.bench.paper_table --seed SECRET --set hard-en --run tree --no-report   one part
    python -m ops.bench.paper_table --seed SECRET --report          the report, of what is there
    python -m ops.bench.paper_table --tune                          the rivals' temperatures
    python -m ops.bench.paper_table --study second --model FOLDER   the other pocket model
    python -m ops.bench.paper_table --study real --model FOLDER     easy problems and GSM8K

Every run keeps its traces under MARCO_HOME/evaluation/paper, and goes on where it was stopped.
Nothing is generated twice: a search has the same rollouts under a looser stop, only fewer, and
independent samples serve every vote. A budget is met by one stop for all sets: the one at which
the tree spends no more than the budget, and a rival no less. That looks at tokens, at no label. A
rival that can't do with a budget is met by a tree that spends as much as it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cache, cached_property, partial
from itertools import combinations, product
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

import jinja2
import numpy as np

from marco_search import settings
from marco_search.cli.evaluation_commands import progress_text
from marco_search.evaluation.data_sets import Problem, from_row, load
from marco_search.evaluation.grading import Grader, Point, Stops, chosen, difference, point
from marco_search.evaluation.report import require_few_failed
from marco_search.evaluation.run import Progress, Recipe, run
from marco_search.evaluation.statistics import (
    accuracy,
    paired,
    points,
    ratio,
    rounded,
)
from marco_search.evaluation.traces import Trace, read
from marco_search.jobs import SearchOptions
from marco_search.kinds import kind_of
from marco_search.kinds.answers.normalization import text_key
from marco_search.kinds.open_ended import similarity, trigrams
from marco_search.runtime import open_runtime
from marco_search.runtime.base import Runtime
from marco_search.search.config import configure
from marco_search.search.votes import Aggregation, Candidate, RankedAnswer, rank
from ops.plots import accuracy_over_tokens
from ops.pocket import samples
from ops.pocket.problems import Language

HERE = Path(__file__).parent
SEED = 20261
"""Of every search."""
STOP = 0.75
THREADS = 48  # searches at once
PROBLEMS = {"pocket": 1000, "second": 250, "real": 300}
"""Of each set of a study."""
MOST_FAILED = 0.01
"""Share of failed rollouts above which there is no report."""
TEXT_RUNS = {
    name: Recipe(options=SearchOptions(strategy=name, seed=SEED, rollouts=8, early_stop=False))
    for name in ("cot", "tree")
}
"""How translation and open-ended jobs are searched."""
TEMPERATURES: dict[str, Any] = json.loads((HERE / "temperatures.json").read_text())
"""Run to temperature to accuracy at each budget on the development split; `--tune` writes it."""
WORDS: list[tuple[samples.Kind, Language]] = [*product(get_args(samples.Kind), get_args(Language))]
# Name in the report -> (run, how its answer is chosen: None as in the run).
RIVALS: dict[str, tuple[str, str | None]] = {
    "adaptive": ("adaptive", None),
    "vote": ("samples", "vote"),
    "weighted vote": ("samples", None),
    "best-of-n": ("samples", "best"),
    "cot-reflect": ("cot-reflect", None),
}
PLAIN_RIVALS = {k: v for k, v in RIVALS.items() if v[0] == "samples"}
# A tree -> its rivals: all of them, and those that never reflect, as it then does not either.
MATCHES = {
    "tree": RIVALS,
    "tree, no reflection": {"adaptive, no reflection": ("adaptive-plain", None)} | PLAIN_RIVALS,
}
ENTRIES: dict[str, tuple[str, str | None]] = {
    "tree": ("tree", None),
    "tree, no reflection": ("tree-plain", None),
}
ENTRIES |= {name: entry for rivals in MATCHES.values() for name, entry in rivals.items()}


def recipes(*, tuned: bool = True) -> dict[str, Recipe]:
    """Run name to recipe. All stop alike: when the tree's own vote is sure, after any rollout."""
    tree = configure("tree").to_json()
    alike = {"stop": STOP, "parallel": 1}
    vote = {name: tree[name] for name in ("reward", "choice", "sharpness")}
    # Most rollouts of a run: with STOP, past the largest budget, a thousand tokens or two. Without
    # such a limit a few problems that never settle take most of a rival's tokens.
    made: dict[str, tuple[str, int, dict[str, Any]]] = {
        "tree": ("tree", 16, {}),
        "adaptive": ("adaptive", 8, {}),
        "samples": ("vote", 6, vote),
        "cot-reflect": ("adaptive", 5, {"reflection": "always"}),
        "tree-plain": ("tree", 16, {"reflection": "never"}),
        "adaptive-plain": ("adaptive", 8, {"reflection": "never"}),
    }
    return {
        name: Recipe(
            options=SearchOptions(
                strategy=strategy,
                seed=SEED,
                rollouts=rollouts,
                overrides=alike | changes | (temperature(name) if tuned else {}),
            )
        )
        for name, (strategy, rollouts, changes) in made.items()
    }


def temperature(name: str) -> dict[str, float]:
    """The best of those tried on the development split; empty: as the strategy has it."""
    tried = TEMPERATURES.get(name, {})
    return {"temperature": float(max(tried, key=lambda t: fmean(tried[t])))} if tried else {}


@dataclass(frozen=True)
class Study:
    """One model on some sets, under some budgets (generated tokens a problem)."""

    name: str
    seed: str  #: of the splits
    count: int  #: of problems in a set
    budgets: Sequence[int]

    @cached_property
    def sets(self) -> dict[str, list[Problem]]:
        """Drawn when first needed: that takes seconds."""
        if self.name == "real":
            return real_sets(self.count)
        return {f"{k}-{lang}": split(self.seed, k, lang, self.count) for k, lang in WORDS}

    @property
    def folder(self) -> Path:
        """Where its traces are."""
        return settings.load().home / "evaluation" / "paper" / self.name / self.seed

    def file(self, set_name: str, run_name: str) -> Path:
        """Where the traces of a run over a set are."""
        return self.folder / set_name / f"{run_name}.jsonl"

    def kept(self, set_name: str, run_name: str, problems: Sequence[Problem]) -> list[Trace]:
        """The traces of all problems; none if any is missing."""
        file = self.file(set_name, run_name)
        found = {t.key: t for t in read(file)} if file.exists() else {}  # the newest of a problem
        return [found[p.key] for p in problems] if all(p.key in found for p in problems) else []

    @cached_property
    def traces(self) -> dict[str, list[Trace]]:
        """Those of all sets in turn, of each complete run. Raises as `require_few_failed`."""
        found = dict[str, list[Trace]]()
        for name in recipes() if self.folder.exists() else ():
            parts = [self.kept(s, name, p) for s, p in self.sets.items()]
            if all(parts):
                found[name] = [trace for part in parts for trace in part]
                require_few_failed(found[name], MOST_FAILED)
        return found

    @cached_property
    def stops(self) -> dict[str, Stops]:
        """The complete runs."""
        return {name: Stops(traces) for name, traces in self.traces.items()}

    @cached_property
    def grader(self) -> Grader:
        """Of all sets."""
        return Grader([p for problems in self.sets.values() for p in problems])

    @cached_property
    def groups(self) -> dict[str, list[int]]:
        """All problems pooled, each part of a set's name, each set: indices of the problems."""
        where = [name for name, problems in self.sets.items() for _ in problems]
        names = {"pooled", *self.sets, *(part for name in self.sets for part in name.split("-"))}
        return {
            name: [i for i, s in enumerate(where) if name in ("pooled", s, *s.split("-"))]
            for name in sorted(names, key=lambda n: (n != "pooled", "-" in n, n))
        }

    def points(self, budget: int) -> dict[str, Point]:
        """Every entry at a budget; greedy is the first rollout of a tree."""
        found = {}
        if begun := self.traces.get("adaptive") or self.traces.get("tree"):
            found["greedy"] = point(begun, self.grader, 1)
        for name, (run_name, choice) in ENTRIES.items():
            if stops := self.stops.get(run_name):
                level = stops.level_for(budget, at_least=name not in MATCHES)
                found[name] = stops.at(self.grader, level, choice)
        return found

    def beside(self, rival: Point, tree: str, budget: int, mine: Point) -> Point:
        """The tree that meets a rival at a budget: `mine`, or one at the tokens that it needs."""
        if (tokens := rival.tokens_per_problem) <= 1.1 * budget:
            return mine
        stops = self.stops[ENTRIES[tree][0]]
        return stops.at(self.grader, stops.level_for(tokens), None)

    def curve(self, name: str, most: int = 30) -> list[Point]:
        """An entry at budgets from the least to the greatest that its run allows."""
        run_name, choice = ENTRIES[name]
        if not (stops := self.stops.get(run_name)):
            return []
        ends = stops.tokens_per_problem(-np.inf), stops.tokens_per_problem(np.inf)
        levels = sorted({stops.level_for(tokens) for tokens in np.geomspace(*ends, most)})
        return [stops.at(self.grader, level, choice) for level in levels]

    def to_json(self) -> dict[str, Any]:
        """results and pairs: budget to group to entry to figures."""
        results: dict[str, Any] = {}
        pairs: dict[str, Any] = {}
        for budget in self.budgets:
            at = self.points(budget)
            mates = {
                (tree, rival): self.beside(at[rival], tree, budget, at[tree])
                for tree, rivals in MATCHES.items()
                for rival in rivals
                if tree in at and rival in at
            }
            for group, where in self.groups.items():
                results.setdefault(str(budget), {})[group] = {
                    name: self._figures(name, picked(p, where)) for name, p in at.items()
                }
                found: dict[str, Any] = {tree: {} for tree in MATCHES if tree in at}
                for (tree, rival), mine in mates.items():
                    found[tree][rival] = compared(picked(mine, where), picked(at[rival], where))
                pairs.setdefault(str(budget), {})[group] = found
        missing = [name for name in recipes() if name not in self.traces]
        return {"results": results, "pairs": pairs, "missing": missing}

    def _figures(self, name: str, at: Point) -> dict[str, Any]:
        traces = self.traces.get(ENTRIES[name][0] if name in ENTRIES else "adaptive", [])
        failed = sum(t.failed for t in traces)
        tokens = {"tokens_per_problem": round(at.tokens_per_problem, 1)}
        return {**rounded(accuracy(at.right)), **tokens, "failed": failed}

    def cheaper(self, tree: str) -> dict[str, Any] | None:
        """Tokens of a tree for the flat cascade's best accuracy at a budget, as a share of its."""
        rival = next(iter(MATCHES[tree]))
        at = [points[rival] for b in self.budgets if rival in (points := self.points(b))]
        best = max(at, key=lambda p: p.accuracy, default=None)
        reached = (p for p in self.curve(tree) if best and p.accuracy >= best.accuracy)
        mine = next(reached, None)
        return asdict(ratio(mine.tokens, best.tokens)) if best and mine else None


def picked(at: Point, where: Sequence[int]) -> Point:
    """Some problems of a point."""
    tokens, right = tuple(at.tokens[i] for i in where), tuple(at.right[i] for i in where)
    return Point(rollouts=at.rollouts, tokens=tokens, right=right)


def compared(mine: Point, theirs: Point) -> dict[str, Any]:
    """`difference` of two points, and the tokens of the second (`at`)."""
    return dict(rounded(difference(mine, theirs)), at=round(theirs.tokens_per_problem))


def goals(found: Mapping[str, Any], cheaper: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The goals, set before measuring, whose runs are complete: text, reached, measured."""
    for tree in MATCHES:
        gains = {b: groups["pooled"].get(tree, {}) for b, groups in found["pairs"].items()}
        for rival in MATCHES[tree]:
            mine = {b: gain[rival] for b, gain in gains.items() if rival in gain}
            if not mine:
                continue
            ahead = all(gain["difference"] > 0 for gain in mine.values())
            clear = any(gain["low"] > 0 for gain in mine.values())
            behind = any(gain["high"] < 0 for gain in mine.values())
            text = f"`{tree}` ahead of `{rival}` at each budget, clear of 0 at one, behind at none"
            measured = "; ".join(
                f"{max(int(b), gain['at'])}: {points(gain)}" for b, gain in mine.items()
            )
            reached = ahead and clear and not behind
            yield {"text": text, "reached": reached, "measured": measured}
        if share := cheaper.get(tree):
            text = f"`{tree}` needs at most 65 % of the tokens for the flat cascade's best accuracy"
            yield {
                "text": f"{text}, interval below 0.8",
                "reached": share["ratio"] <= 0.65 and share["high"] < 0.8,
                "measured": "{ratio:.2f} ({low:.2f} to {high:.2f})".format(**share),
            }


# -- Translation and open-ended jobs -----------------------------------------------------


def texts(kind: str, count: int) -> list[Problem]:
    """The held-out phrases, or prompts with many good answers in both languages."""
    if kind == "translation":
        return load("heldout_translation", limit=count)
    return [from_row({"prompt": prompt}, kind) for prompt in list(acceptable())[:count]]


def acceptable() -> dict[str, Callable[[str], bool]]:
    """Open-ended prompt to whether an output is what it asks for."""
    sums = {
        samples.OPEN_ENDED["en"]["sum"].format(total=total): partial(samples.adds_up_to, total)
        for total in range(20, 200, 15)
    }
    return samples.acceptable_gifts() | sums


def text_results(main_study: Study, count: int) -> dict[str, Any]:
    """The figures of each kind, of the runs that are complete."""
    found: dict[str, Any] = {}
    for kind, figures in TEXT_KINDS.items():
        problems = texts(kind, count)
        section: dict[str, Any] = {"n": len(problems), "strategies": []}
        for name in TEXT_RUNS:
            if traces := main_study.kept(kind, name, problems):
                one = figures(problems, traces)
                for shared in {"signature", "example"} & one.keys():
                    section[shared] = one.pop(shared)  # the last strategy's stand for all
                tokens = round(fmean(t.tokens for t in traces), 1)
                section["strategies"] += [{"strategy": name, **one, "tokens_per_problem": tokens}]
        exact = [s.pop("exact") for s in section["strategies"] if "exact" in s]
        if len(exact) == len(TEXT_RUNS):
            greedy, tree = exact
            section["gain"] = rounded(asdict(paired(tree, greedy)))
        if section["strategies"]:
            found[kind.replace("-", "_")] = section
    return found


def _translation(problems: Sequence[Problem], traces: Sequence[Trace]) -> dict[str, Any]:
    from sacrebleu.metrics.chrf import CHRF

    outputs = [t.answers.get(chosen(t) or "", "") for t in traces]
    accepted = [p.expected for p in problems]
    longest = max(map(len, accepted), default=0)
    # sacreBLEU wants as many references for each; a repeated one changes nothing.
    streams = [[refs[min(i, len(refs) - 1)] for refs in accepted] for i in range(longest)]
    metric = CHRF()
    score = metric.corpus_score(outputs, streams).score
    pairs = zip(outputs, accepted, strict=True)
    exact = [text_key(output) in map(text_key, good) for output, good in pairs]
    found: dict[str, Any] = rounded(accuracy(exact))
    distinct = fmean(map(len, map(_distinct, problems, traces)))
    return found | {
        "chrf": round(score, 2),
        "distinct": distinct,
        "signature": str(metric.get_signature()),
        "exact": exact,
    }


def _diversity(outputs: Sequence[str]) -> float:
    """Mean distance of the outputs, pair by pair: 1 - Jaccard index of their trigrams.

    The index counts as 0 where sizes alone rule near-duplicates out.
    """
    grams = [trigrams(text_key(output)) for output in outputs]
    return fmean(1 - similarity(a, b) for a, b in combinations(grams, 2))


def _open_ended(problems: Sequence[Problem], traces: Sequence[Trace]) -> dict[str, Any]:
    ranked, right = list(map(_distinct, problems, traces)), acceptable()
    texts = [[t.answers[a.key] for a in found] for found, t in zip(ranked, traces, strict=True)]
    prompts = [p.job.subject for p in problems]
    good = [sum(map(right[p], found)) for p, found in zip(prompts, texts, strict=True)]
    spread = [_diversity(outputs) for outputs in texts if len(outputs) > 1]
    best = zip(ranked[0][:5], texts[0][:5], strict=True)
    return {
        "distinct": fmean(map(len, ranked)),
        "acceptable": fmean(good),
        "merged": fmean(len(t.answers) - len(a) for a, t in zip(ranked, traces, strict=True)),
        "diversity": fmean(spread) if spread else 0.0,
        "example": {
            "prompt": prompts[0],
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
    return rank(candidates, Aggregation.WEIGHTED, trace.scale)


TEXT_KINDS: dict[str, Callable[[Sequence[Problem], Sequence[Trace]], dict[str, Any]]] = {
    "translation": _translation,
    "open-ended": _open_ended,
}


# -- Runs and report ----------------------------------------------------------------------


def study(name: str, seed: str, count: int) -> Study:
    """A study by its name."""
    if name == "real":
        return Study(name, "", count, (200, 400))
    return Study(name, seed, count, (250, 400, 800))


@cache  # a report takes the sets of all studies, also those that were just run
def split(seed: str, kind: samples.Kind, language: Language, count: int) -> list[Problem]:
    """A set of a study of a pocket model."""
    return samples.as_problems(samples.draw(seed, kind, language, count))


def real_sets(count: int) -> dict[str, list[Problem]]:
    """Easy problems of ours, and the first 200 of GSM8K where they are beside the repository."""
    sets = {"easy": load(str(HERE / "easy.jsonl"), limit=min(count, 300))}
    gsm8k = HERE.parents[2] / "shared" / "data" / "gsm8k" / "test.jsonl"
    if not gsm8k.exists():
        print(f"GSM8K is left out: there is no {gsm8k}", file=sys.stderr)
        return sets
    return sets | {"gsm8k": load(str(gsm8k), limit=min(count, 200))}


def make(how: Recipe, problems: Sequence[Problem], runtime: Runtime, file: Path) -> None:
    """One run over one set."""
    printed_at = 0.0

    def show(progress: Progress) -> None:
        nonlocal printed_at
        if progress.done == progress.total or time.monotonic() - printed_at > 10:
            printed_at = time.monotonic()
            about = f"{file.parent.name} {file.stem}: {progress_text(progress)}"
            print(about, file=sys.stderr, flush=True)

    run(problems, how, runtime, file, threads=THREADS, on_progress=show)


def tune(runtime: Runtime, count: int) -> None:
    """Try the temperatures of temperatures.json on the development split and write it again."""
    dev = study("tuning", samples.DEVELOPMENT, count)
    for name, tried in TEMPERATURES.items():
        for heat in tried:
            options = recipes()[name].options
            overrides = options.overrides | {"temperature": float(heat)}
            how = Recipe(options=options.model_copy(update={"overrides": overrides}))
            traces = list[Trace]()
            for set_name, problems in dev.sets.items():
                file = dev.file(set_name, f"{name}-{heat}")
                make(how, problems, runtime, file)
                traces += dev.kept(set_name, f"{name}-{heat}", problems)
            stops = Stops(traces)
            at = [stops.at(dev.grader, stops.level_for(b, at_least=True)) for b in dev.budgets]
            tried[heat] = [round(p.accuracy, 4) for p in at]
            text = json.dumps(TEMPERATURES, indent=1) + "\n"
            (HERE / "temperatures.json").write_text(text)


def reported(one: Study) -> dict[str, Any]:
    """What the report has of a study."""
    data = one.to_json()
    data["n"] = max(map(len, one.sets.values()))
    data["cheaper"] = {tree: one.cheaper(tree) for tree in MATCHES}
    data["goals"] = list(goals(data, data["cheaper"]))
    return data


def write_report(studies: Sequence[Study], docs: Path) -> list[Path]:
    """Write results.md, results.json and the plot.

    A study of which there are no traces here stays as it was reported. Incomplete runs are left
    out and named.
    """
    docs.mkdir(parents=True, exist_ok=True)
    data_file, page = docs / "results.json", docs / "results.md"
    found: dict[str, Any] = json.loads(data_file.read_text()) if data_file.exists() else {}
    main_study, *others = studies
    if main_study.traces or not found:
        # The main study's figures come first, where a reader looks for them.
        found = reported(main_study) | {"studies": found.get("studies", {})}
        found |= {"seed": main_study.seed, "search_seed": SEED}
        found["temperatures"] = {name: temperature(name)["temperature"] for name in TEMPERATURES}
        found["texts"] = text_results(main_study, found["n"])
    found["studies"] |= {one.name: reported(one) for one in others if one.traces}
    data_file.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n")
    loader = jinja2.FileSystemLoader(HERE)
    template = jinja2.Environment(loader=loader, trim_blocks=True, keep_trailing_newline=True)
    tools = {"points": points, "matches": MATCHES, "tried": TEMPERATURES}
    page.write_text(template.get_template("results.md.j2").render(found | tools))
    lines = {name: line for name in ENTRIES if (line := main_study.curve(name))}
    if not lines:
        return [page, data_file]
    panel = {f"all sets, n = {len(main_study.groups['pooled'])}": lines}
    stem = docs / "plots" / "accuracy-over-tokens"
    return [page, data_file, *accuracy_over_tokens(panel, stem)]


def main(words: Sequence[str] | None = None, *, runtime: Runtime | None = None) -> None:
    """The command line. `runtime` is used instead of the one that the settings name."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--study", choices=("pocket", "second", "real"), default="pocket")
    parser.add_argument("--seed", default=samples.DEVELOPMENT, help="of the splits")
    parser.add_argument("--model", type=Path, help="folder or file; default: the settings'")
    parser.add_argument("--set", action="append", help="by default all of the study")
    parser.add_argument("--run", choices=[*recipes(), "texts"], action="append")
    parser.add_argument("--problems", type=int, help=f"a set; by default {PROBLEMS}")
    parser.add_argument("--tune", action="store_true", help="the rivals' temperatures only")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--no-report", action="store_true", help="write nothing")
    parser.add_argument("--docs", type=Path, default=HERE.parents[1] / "docs")
    asked = parser.parse_args(words)
    count = asked.problems or PROBLEMS[asked.study]
    one, loaded = study(asked.study, asked.seed, count), settings.load()
    if asked.model:
        loaded = loaded.model_copy(update={"model": asked.model})
    if not asked.report:
        with closing(runtime or open_runtime(loaded)) as opened:
            if asked.tune:
                tune(opened, count)
                return
            usual = ("tree", "samples") if asked.study == "real" else (*recipes(), "texts")
            known = recipes(tuned=asked.study != "real")
            for name in asked.run or usual:
                for set_name in (asked.set or one.sets) if name != "texts" else ():
                    make(known[name], one.sets[set_name], opened, one.file(set_name, name))
            for kind in TEXT_KINDS if "texts" in (asked.run or usual) else ():
                for name, how in TEXT_RUNS.items():
                    make(how, texts(kind, count), opened, one.file(kind, name))
    if not asked.no_report:
        counts = PROBLEMS | {asked.study: count}
        studies = [study(name, asked.seed, n) for name, n in counts.items()]
        print(*write_report(studies, asked.docs), sep="\n")


if __name__ == "__main__":
    main()
