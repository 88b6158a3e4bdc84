"""Translation and open-ended jobs in the report: which there are, their runs and figures.

`ops.bench.paper_table` runs them and writes what is found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from statistics import fmean
from typing import Any

from marco_search.evaluation import statistics
from marco_search.evaluation.data_sets import Problem, from_row, load
from marco_search.evaluation.grading import chosen
from marco_search.evaluation.run import Recipe
from marco_search.evaluation.statistics import accuracy, diversity, rounded
from marco_search.evaluation.traces import Trace
from marco_search.jobs import SearchOptions
from marco_search.kinds import kind_of
from marco_search.search.votes import Aggregation, Candidate, RankedAnswer, rank
from ops.pocket.samples import OPEN_ENDED, acceptable_gifts, adds_up_to

KINDS = ("translation", "open-ended")
RUNS = ("cot", "tree")
Kept = Callable[[str, str, Sequence[Problem]], list[Trace]]
"""Kind, run and problems -> the traces of all of these; none if any is missing."""


def problems_of(kind: str, count: int | None = None) -> list[Problem]:
    """The held-out phrases, or prompts with many good answers in both languages."""
    if kind == "translation":
        return load("heldout_translation", limit=count)
    return [from_row({"prompt": prompt}, kind) for prompt in list(acceptable())[:count]]


def acceptable() -> dict[str, Callable[[str], bool]]:
    """Open-ended prompt to whether an output is what it asks for."""
    sums = {
        OPEN_ENDED["en"]["sum"].format(total=total): partial(adds_up_to, total)
        for total in range(20, 200, 15)
    }
    return acceptable_gifts() | sums


def recipe(strategy: str, seed: int) -> Recipe:
    """How these jobs are searched."""
    options = {"strategy": strategy, "seed": seed, "rollouts": 8, "early_stop": False}
    return Recipe(options=SearchOptions.model_validate(options))


def results(kept: Kept, count: int | None) -> dict[str, Any]:
    """The figures of each kind, of the runs that are complete."""
    found: dict[str, Any] = {}
    for kind, figures in zip(KINDS, (_translation, _open_ended), strict=True):
        problems = problems_of(kind, count)
        section: dict[str, Any] = {"n": len(problems), "strategies": []}
        for name in RUNS:
            if traces := kept(kind, name, problems):
                one = figures(problems, traces)
                for shared in {"signature", "example"} & one.keys():
                    section[shared] = one.pop(shared)  # the last strategy's stand for all
                tokens = round(fmean(t.tokens for t in traces), 1)
                section["strategies"] += [{"strategy": name, **one, "tokens_per_problem": tokens}]
        exact = [s.pop("exact") for s in section["strategies"] if "exact" in s]
        if len(exact) == len(RUNS):
            greedy, tree = exact
            section["gain"] = rounded(asdict(statistics.paired(tree, greedy)))
        if section["strategies"]:
            found[kind.replace("-", "_")] = section
    return found


def _translation(problems: Sequence[Problem], traces: Sequence[Trace]) -> dict[str, Any]:
    outputs = [t.answers.get(chosen(t) or "", "") for t in traces]
    accepted = [p.expected for p in problems]
    chrf, signature = statistics.chrf(outputs, accepted)
    exact = statistics.exact_matches(outputs, accepted)
    found: dict[str, Any] = rounded(accuracy(exact))
    distinct = fmean(map(len, map(_distinct, problems, traces)))
    return found | {
        "chrf": round(chrf, 2),
        "distinct": distinct,
        "signature": signature,
        "exact": exact,
    }


def _open_ended(problems: Sequence[Problem], traces: Sequence[Trace]) -> dict[str, Any]:
    ranked, right = list(map(_distinct, problems, traces)), acceptable()
    texts = [[t.answers[a.key] for a in found] for found, t in zip(ranked, traces, strict=True)]
    prompts = [p.job.subject for p in problems]
    good = [sum(map(right[p], found)) for p, found in zip(prompts, texts, strict=True)]
    spread = [diversity(outputs) for outputs in texts if len(outputs) > 1]
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
