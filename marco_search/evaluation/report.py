"""The figures of an evaluation, as rows, comparisons, Markdown and JSON.

Test@1 is the accuracy of the chosen answer. Test@N (solved at least once in N guesses): for
independent samples the unbiased estimate over all that were drawn (statistics.pass_at_k), for
a tree its first N rollouts, which share prefixes and so are not separate guesses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from marco_search.errors import InvalidDataSet, RuntimeUnavailable
from marco_search.evaluation.data_sets import Problem
from marco_search.evaluation.grading import (
    Grader,
    chosen,
    coverage,
    graded,
    ranked,
)
from marco_search.evaluation.statistics import (
    accuracy,
    auroc,
    calibration,
    calibration_error,
    paired,
    pass_at_k,
    ratio,
    rounded,
)
from marco_search.evaluation.traces import Trace, digest
from marco_search.search.tree import ROOT

TEST_AT = (8, 16, 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One strategy on one set of problems. Token counts and seconds are means per problem."""

    strategy: str
    problems: int
    n: int  #: of them, those with a label: accuracy, Test@N and AUROC are theirs
    accuracy: float  #: Test@1
    low: float  #: 95 % Wilson interval
    high: float
    rollouts: float
    failed: float  #: share of the rollouts that the runtime gave no text for
    cut_off: float  #: share of those that were out of tokens before the turn ended
    untagged: float  #: share of those whose thought never ended
    unanswered: float  #: share of those that ended without an answer that can be read
    tokens_per_problem: float  #: generated
    prefilled_per_problem: float  #: prompt tokens that had to be computed
    cached_per_problem: float  #: prompt tokens from the prefix cache
    seconds_per_problem: float  #: from first round to last, other searches running beside it
    test_at: dict[str, float]  #: "8", "32": where there are as many rollouts
    separate_guesses: bool  #: whether those are separate guesses
    auroc: float | None  #: confidence of the chosen answer against its correctness
    auroc_rollouts: float | None  #: the same of single rollouts
    calibration_error: float | None  #: of single rollouts
    right: tuple[bool, ...]  #: of each problem with a label, in order

    def to_json(self) -> dict[str, Any]:
        """All but the single outcomes, rounded to what the reader needs."""
        data = {k: rounded(v) for k, v in asdict(self).items() if k not in ("right", "strategy")}
        share = rounded(self.accuracy) if self.n else None
        return data | {"accuracy": share, "test_at": {"1": share} | rounded(self.test_at)}


def row(strategy: str, traces: Sequence[Trace], grader: Grader) -> Row:
    """The figures of a run."""
    known = [t for t in traces if t.key in grader]
    right = graded(known, grader).right
    n, used = len(traces), [r for t in traces for r in t.rollouts]
    separate = all(r.start == ROOT for t in traces for r in t.rollouts)
    shortfalls = [r.shortfall for r in used]
    confidences = [r.path_confidence for t in known for r in t.answered]
    correct = [one for t in known for one in grader.rollouts(t)]
    prompt, cached = sum(r.prompt for r in used), sum(r.cached for r in used)
    return Row(
        strategy=strategy,
        problems=n,
        **accuracy(right),
        rollouts=len(used) / n,
        failed=_failed_share(traces),
        cut_off=shortfalls.count("cut_off") / max(1, len(used)),
        untagged=shortfalls.count("untagged") / max(1, len(used)),
        unanswered=shortfalls.count("unanswered") / max(1, len(used)),
        tokens_per_problem=sum(t.tokens for t in traces) / n,
        prefilled_per_problem=(prompt - cached) / n,
        cached_per_problem=cached / n,
        seconds_per_problem=sum(t.seconds for t in traces) / n,
        test_at=_test_at(known, grader, separate),
        separate_guesses=separate,
        auroc=auroc(list(map(_confidence, known)), right),
        auroc_rollouts=auroc(confidences, correct),
        calibration_error=calibration_error(calibration(confidences, correct)),
        right=right,
    )


def _failed_share(traces: Sequence[Trace]) -> float:
    rollouts = sum(len(t.rollouts) for t in traces)
    return sum(t.failed for t in traces) / rollouts if rollouts else 0.0


def require_few_failed(traces: Sequence[Trace], most: float) -> None:
    """Raise RuntimeUnavailable if more than `most` (a share) of the rollouts failed."""
    share = _failed_share(traces)
    if share > most:
        failed = sum(t.failed for t in traces)
        raise RuntimeUnavailable(
            f"{failed:,} rollouts failed, {100 * share:.1f} % of all and more than the "
            f"{100 * most:g} % allowed: no report is written, since it would count them as wrong "
            "answers. Run it again: problems with failed rollouts are searched again"
        )


def _test_at(traces: Sequence[Trace], grader: Grader, separate: bool) -> dict[str, float]:
    # A tree that stopped early has no further rollouts; samples there must be enough of.
    lengths = [len(t.rollouts) for t in traces]
    longest = (min if separate else max)(lengths, default=0)
    solved = [sum(grader.rollouts(t)) for t in traces]
    found = {}
    for k in [k for k in TEST_AT if k <= longest]:
        chances: Sequence[float] = coverage(traces, grader, k)
        if separate:
            chances = [pass_at_k(n, c, k) for n, c in zip(lengths, solved, strict=True)]
        found[str(k)] = sum(chances) / len(chances)
    return found


def _confidence(trace: Trace) -> float:
    """Share of the vote's weight behind the chosen answer; a lone path's own confidence."""
    answers = ranked(trace)
    if not answers:
        return 0.0
    alone = trace.choice == "best" or sum(answer.votes for answer in answers) == 1
    return answers[0].best_value if alone else answers[0].share


def samples(
    traces: Sequence[Trace], problems: Sequence[Problem], grader: Grader
) -> Iterator[dict[str, Any]]:
    """What became of each problem. `right` is None where there is no label."""
    by_key = {p.key: p for p in problems}
    for trace in traces:
        problem, answer = by_key[trace.key], chosen(trace)
        yield {
            "question": problem.job.subject,
            "expected": problem.expected,
            "answer": None if answer is None else trace.answers[answer],
            "right": grader.solved(trace) if problem.expected else None,
            "tokens": trace.tokens,
            "confidence": rounded(_confidence(trace)),
            "rollouts": len(trace.rollouts),
            "trace": digest(trace),
        }


def compare(
    traces: Sequence[Trace], others: Sequence[Trace], grader: Grader
) -> dict[str, dict[str, Any]]:
    """Accuracy and tokens of a run against those of another, on the problems that both have.

    Accuracy is that of the problems with a label. Raises InvalidDataSet if they share no problem.
    """
    # Both runs may be in one file.
    own = {(trace.key, trace.run) for trace in traces}
    theirs = {trace.key: trace for trace in others if (trace.key, trace.run) not in own}
    theirs = theirs or {trace.key: trace for trace in others}
    pairs = [(trace, theirs[trace.key]) for trace in traces if trace.key in theirs]
    if not pairs:
        raise InvalidDataSet("the two runs have no problem in common")
    right = [(grader.solved(a), grader.solved(b)) for a, b in pairs if a.key in grader]
    gain = paired([a for a, _ in right], [b for _, b in right])
    spent = ratio([a.tokens for a, _ in pairs], [b.tokens for _, b in pairs])
    return {"accuracy": rounded(asdict(gain)), "tokens": rounded(asdict(spent))}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are right-aligned."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))


def percent(value: float | None) -> str:
    """0.9 as "90.0"; an empty cell for None."""
    return "" if value is None else f"{100 * value:.1f}"
