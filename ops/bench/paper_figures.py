"""What the report says in numbers: rows, comparisons at equal tokens, goals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from marco_search.evaluation.curves import Point, at_least, curve, tokens_to_reach
from marco_search.evaluation.data_sets import Problem, load
from marco_search.evaluation.grading import Grader
from marco_search.evaluation.report import Row, row
from marco_search.evaluation.statistics import Paired, paired
from marco_search.evaluation.traces import Trace, read
from ops.bench.paper_runs import FEW, SETS, runs

# Name in the report -> (run of independent samples, how they are put to the vote, power).
FLAT: dict[str, tuple[str, str, float]] = {
    "self-consistency": ("samples", "vote", 1.0),
    "best-of-n": ("samples", "best", 1.0),
    "sharpened vote": ("samples", "weighted", 128.0),
    "self-consistency, reflecting": ("samples-reflect", "vote", 1.0),
    "best-of-n, reflecting": ("samples-reflect", "best", 1.0),
}
WINNER = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """All runs of one set."""

    name: str
    problems: list[Problem]
    grader: Grader
    traces: Mapping[str, list[Trace]]  # by run; only those that are complete
    seconds: Mapping[str, float]  # wall clock of the run
    rollouts: int  # of each main run but the winner's

    def curve(self, strategy: str) -> list[Point]:
        """The accuracy of a run, or of a vote over samples, at each number of rollouts."""
        name, choice, power = FLAT.get(strategy, (strategy, None, None))
        if name not in self.traces:
            return []
        return curve(self.traces[name], self.grader, choice=choice, sharpness=power)

    @property
    def missing(self) -> list[str]:
        """Runs that are not complete."""
        return [name for name in runs(self.rollouts) if name not in self.traces]

    @property
    def trees(self) -> list[str]:
        """The runs of searches that grow a tree, the winner last."""
        return [n for n in self.traces if not n.startswith(("cot", "samples")) and n != WINNER] + [
            n for n in self.traces if n == WINNER
        ]


COMPARED = ("cot", "samples", WINNER)
"""Runs that the comparisons rest on: the report covers the problems that all of them have."""


def gather(folder: Path, language: str, count: int, rollouts: int) -> Language:
    """What is there of one set: the first problems (at most `count`) that COMPARED have all.

    Another run that lacks some of these is left out.
    """
    problems = load(SETS[language], limit=count)
    found, seconds = {}, {}
    for name, run in runs(rollouts).items():
        file = run.file(folder, language)
        if file.exists():
            found[name] = {t.key: t for t in read(file)}  # the last of a problem is the newest
            beside = file.with_suffix(".seconds.json")
            seconds[name] = json.loads(beside.read_text()) if beside.exists() else 0.0
    needed = [found[name] for name in COMPARED if name in found] or list(found.values())
    whole = [all(p.key in traces for traces in needed) for p in problems]
    covered = problems[: whole.index(False)] if False in whole else problems
    return Language(
        name=language,
        problems=covered,
        grader=Grader(problems),
        traces={
            name: [traces[p.key] for p in covered]
            for name, traces in found.items()
            if covered and all(p.key in traces for p in covered)
        },
        seconds=seconds,
        rollouts=rollouts,
    )


def rows(language: Language) -> list[Row]:
    """The table: greedy, the baselines at the winner's tokens and whole, the trees."""
    found = [
        row(name, language.traces[name], language.grader)
        for name in ("cot", "cot-reflect")
        if name in language.traces
    ]
    target = winner_point(language)
    for name, (run, choice, power) in FLAT.items():
        points = language.curve(name)
        if not points:
            continue
        at = (target and at_least(points, target.tokens_per_problem)) or points[-1]
        for n in sorted({at.rollouts, points[-1].rollouts}):
            traces, label = language.traces[run], f"{name}, n = {n}"
            found.append(
                row(label, traces, language.grader, rollouts=n, choice=choice, sharpness=power)
            )
    for name in language.trees:
        traces = language.traces[name]
        if name != WINNER and max(len(t.rollouts) for t in traces) > FEW:
            found.append(row(f"{name}, {FEW} rollouts", traces, language.grader, rollouts=FEW))
        found.append(row(name, traces, language.grader))
    return found


def winner_point(language: Language) -> Point | None:
    """The winning strategy's whole run."""
    points = language.curve(WINNER)
    return points[-1] if points else None


def at_equal_tokens(
    language: Language, strategy: str, baselines: Sequence[str], rollouts: int | None = None
) -> list[tuple[str, Point, Paired]]:
    """`strategy` against each baseline given at least as many tokens: (baseline, point, result).

    A baseline whose run ends before that is compared at its end.
    """
    points = language.curve(strategy)
    if not points:
        return []
    mine = points[min(rollouts or len(points), len(points)) - 1]
    found = []
    for name in baselines:
        theirs = language.curve(name)
        if theirs:
            other = at_least(theirs, mine.tokens_per_problem) or theirs[-1]
            found.append((name, other, paired(mine.right, other.right)))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """Tokens per problem of the winner and of a baseline to the same accuracy."""

    accuracy: float
    baseline_tokens: float | None  # None: not reached
    tokens: float | None  # None: not reached

    @property
    def ratio(self) -> float | None:
        """Share of the baseline's tokens; None unless both reach the accuracy."""
        if self.tokens is None or self.baseline_tokens is None:
            return None
        return self.tokens / self.baseline_tokens


def saving(language: Language, *, at_best: bool, baseline: str = "self-consistency") -> Saving:
    """What both need for the winner's accuracy or, `at_best`, for the baseline's best."""
    theirs, mine = language.curve(baseline), language.curve(WINNER)
    accuracy = max(p.accuracy for p in theirs) if at_best else mine[-1].accuracy
    return Saving(
        accuracy=accuracy,
        baseline_tokens=tokens_to_reach(theirs, accuracy),
        tokens=tokens_to_reach(mine, accuracy),
    )
