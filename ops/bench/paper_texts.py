"""Translation and open-ended runs: search against greedy, and the n best distinct answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from marco_search.evaluation.data_sets import Problem, from_row, load
from marco_search.evaluation.grading import chosen
from marco_search.evaluation.statistics import TextScores, diversity, score_texts, wilson
from marco_search.evaluation.traces import Trace, read
from marco_search.kinds import kind_of
from marco_search.search.votes import Aggregation, Candidate, RankedAnswer, rank
from ops.bench.paper_runs import SEED, Run
from ops.pocket.open_ended import HOBBIES

TRANSLATION, OPEN_ENDED = "translation", "open-ended"
ANSWERS = 5
"""Best distinct answers that are looked at."""
TEXT_RUNS = {
    "cot": Run(name="cot", options={"strategy": "cot"}),
    "auto": Run(name="auto", options={"strategy": "auto", "rollouts": 8, "early_stop": False}),
}


def text_problems(kind: str) -> list[Problem]:
    """The held-out phrases, or prompts with many good answers in both languages."""
    if kind == TRANSLATION:
        return load("heldout_translation")
    gifts = [
        prompt
        for english, chinese, *_ in HOBBIES
        for prompt in (
            f"Suggest a gift for a friend who likes {english}.",
            f"给喜欢{chinese}的朋友推荐一份礼物。",
        )
    ]
    sums = [f"Find two numbers whose sum is {total}." for total in range(20, 200, 15)]
    return [from_row({"prompt": prompt}, "open-ended") for prompt in gifts + sums]


def ranked(problem: Problem, trace: Trace) -> list[RankedAnswer]:
    """The distinct answers of a trace, best first, near-duplicates merged."""
    rollouts = [r for r in trace.rollouts if r.answer is not None]
    said = [(str(r.answer), r.path_confidence) for r in rollouts]
    merged = kind_of(problem.job).merge(said)
    candidates = [
        Candidate(key=key, value=r.path_confidence, rollout_id=i)
        for i, (key, r) in enumerate(zip(merged, rollouts, strict=True))
    ]
    return rank(candidates, Aggregation.WEIGHTED, sharpness=trace.sharpness)


def read_texts(folder: Path) -> dict[str, Any]:
    """The figures of both sections, of the runs that are complete."""
    found: dict[str, Any] = {}
    for kind, figures in ((TRANSLATION, _translation), (OPEN_ENDED, _open_ended)):
        problems = text_problems(kind)
        strategies = []
        for name, run in TEXT_RUNS.items():
            file = run.file(folder, kind)
            traces = {t.key: t for t in read(file)} if file.exists() else {}
            if all(p.key in traces for p in problems):
                strategies.append(figures(name, problems, [traces[p.key] for p in problems]))
        if strategies:
            found[kind.replace("-", "_")] = _section(problems, strategies)
    return found


def _section(problems: Sequence[Problem], strategies: list[dict[str, Any]]) -> dict[str, Any]:
    section: dict[str, Any] = {"n": len(problems), "seed": SEED}
    for one in strategies:
        # The last strategy's example and signature stand for all.
        section |= {k: one.pop(k) for k in ("signature", "example") if k in one}
    return section | {"strategies": strategies}


def _translation(name: str, problems: Sequence[Problem], traces: Sequence[Trace]) -> dict[str, Any]:
    outputs = []
    for trace in traces:
        answer = chosen(trace.rollouts, trace.choice, trace.sharpness)
        outputs.append(trace.answers[answer] if answer is not None else "")
    scores: TextScores = score_texts(outputs, [p.expected for p in problems])
    low, high = wilson(sum(scores.right), scores.n)
    distinct = [len(ranked(p, t)) for p, t in zip(problems, traces, strict=True)]
    return {
        "strategy": name,
        "chrf": round(scores.chrf, 2),
        "exact": round(scores.exact, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "distinct": sum(distinct) / len(distinct),
        "tokens_per_problem": round(sum(t.tokens for t in traces) / len(traces), 1),
        "signature": scores.signature,
    }


def _open_ended(name: str, problems: Sequence[Problem], traces: Sequence[Trace]) -> dict[str, Any]:
    distinct, merged, spread = [], [], []
    example: dict[str, Any] = {}
    for problem, trace in zip(problems, traces, strict=True):
        found = ranked(problem, trace)
        texts = [trace.answers[a.key] for a in found]
        distinct.append(len(found))
        merged.append(len({r.answer for r in trace.rollouts} - {None}) - len(found))
        if len(texts) > 1:
            spread.append(diversity(texts))
        if not example:
            best = zip(found[:ANSWERS], texts, strict=False)
            example = {
                "prompt": problem.job.subject,
                "answers": [
                    {"text": t, "confidence": a.confidence, "votes": a.votes} for a, t in best
                ],
            }
    n = len(problems)
    return {
        "strategy": name,
        "distinct": sum(distinct) / n,
        "merged": sum(merged) / n,
        "diversity": sum(spread) / len(spread) if spread else 0.0,
        "tokens_per_problem": round(sum(t.tokens for t in traces) / n, 1),
        "example": example,
    }
