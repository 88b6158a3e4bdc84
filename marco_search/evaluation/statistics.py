"""The statistics of the reports: intervals, paired comparisons, ranking quality, Test@N;
and two revisions of a model on the same questions, paired question by question.

None of these needs SciPy, which `marco` does not install.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from marco_search.store.reads.lineage import Pair

Z95 = 1.959963984540054
"""Two-sided 95 % point of the normal distribution."""


def wilson(right: int, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of `right` in `n`; (0, 1) without observations."""
    if n == 0:
        return 0.0, 1.0
    share, z2 = right / n, Z95 * Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # At 0 and n right the bound is exact; rounding must not push it over the edge.
    return max(0.0, centre - half), min(1.0, centre + half)


def accuracy(right: Sequence[bool]) -> dict[str, Any]:
    """n, accuracy and its 95 % interval (low, high) of these outcomes."""
    low, high = wilson(sum(right), len(right))
    return {"n": len(right), "accuracy": sum(right) / max(1, len(right)), "low": low, "high": high}


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """Two strategies on the same problems: the first's accuracy less the second's."""

    n: int
    difference: float
    low: float  #: 95 % percentile interval of the paired bootstrap
    high: float
    only_first: int  #: problems that only the first solves
    only_second: int
    p: float  #: exact two-sided McNemar test

    @property
    def clear(self) -> bool:
        """Whether it is significant: with few problems the interval alone excludes 0 too often."""
        return (self.low > 0 or self.high < 0) and self.p < 0.05

    def __str__(self) -> str:
        return points(asdict(self), " points")


def points(gain: Mapping[str, float], unit: str = "") -> str:
    """The fields of a `Paired` in percentage points: the difference with its interval."""
    difference, low, high = (100 * gain[name] for name in ("difference", "low", "high"))
    return f"{difference:+.1f}{unit} ({low:+.1f} to {high:+.1f})"


def paired(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    """Compare two strategies problem by problem. Raises ValueError if the lengths differ."""
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} outcomes are not the same problems")
    n, outcomes = len(first), Counter(zip(first, second, strict=True))
    only_first, only_second = outcomes[True, False], outcomes[False, True]
    low = high = 0.0
    if n:
        # A resample's gain depends only on how many problems of each of three kinds it holds.
        shares = [only_first / n, only_second / n, 1 - (only_first + only_second) / n]
        drawn = np.random.default_rng(0).multinomial(n, shares, size=10_000)
        low, high = np.percentile((drawn[:, 0] - drawn[:, 1]) / n, [2.5, 97.5])
    return Paired(
        n=n,
        difference=(only_first - only_second) / max(1, n),
        low=float(low),
        high=float(high),
        only_first=only_first,
        only_second=only_second,
        p=mcnemar(only_first, only_second),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Tokens of one strategy as a share of those of another on the same problems."""

    ratio: float
    low: float  #: 95 % percentile interval of the paired bootstrap
    high: float

    def __str__(self) -> str:
        return f"{self.ratio:.2f} ({self.low:.2f} to {self.high:.2f})"


def ratio(first: Sequence[float], second: Sequence[float]) -> Ratio:
    """The ratio of the sums of tokens, problem by problem. Raises ValueError if the lengths differ.

    A turn without any counts as one, that which ended it: there is a ratio to every sum.
    """
    pairs, random = np.maximum(1.0, [first, second]), np.random.default_rng(0)
    n = pairs.shape[1]
    drawn = np.array(
        [pairs.take(random.integers(n, size=n), axis=1).sum(axis=1) for _ in range(1000)]
    )
    low, high = np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5])
    mine, theirs = pairs.sum(axis=1)
    return Ratio(ratio=float(mine / theirs), low=float(low), high=float(high))


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided McNemar test: the binomial test of the discordant pairs at 1/2."""
    n, least = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(n, i) for i in range(least + 1))
    return min(1.0, 2 * tail / (1 << n))


def auroc(scores: Sequence[float], labels: Sequence[bool]) -> float | None:
    """Probability that a right one scores above a wrong one, ties half; None without both kinds."""
    values, right = np.asarray(scores, dtype=float), np.asarray(labels, dtype=bool)
    n_right, n_wrong = int(right.sum()), int((~right).sum())
    if not n_right or not n_wrong:
        return None
    # Mann-Whitney U from average ranks.
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[inverse]
    u = ranks[right].sum() - n_right * (n_right + 1) / 2
    return float(u / (n_right * n_wrong))


@dataclass(frozen=True, slots=True)
class Bin:
    """The answers whose confidence falls into one bin."""

    n: int
    confidence: float  #: mean
    accuracy: float


def calibration(scores: Sequence[float], labels: Sequence[bool], bins: int = 10) -> list[Bin]:
    """Bins of equal size by rank of confidence, lowest first; empty ones are left out.

    Bins of equal width would put all answers of a confident model into the last one. Equal
    confidences count as right by their common share: their order says nothing.
    """
    values, right = np.asarray(scores, dtype=float), np.asarray(labels, dtype=float)
    _, tied, counts = np.unique(values, return_inverse=True, return_counts=True)
    right = (np.bincount(tied, right) / counts)[tied]
    order = np.argsort(values, kind="stable")
    parts = np.split(order, [len(order) * i // bins for i in range(1, bins)])
    return [Bin(len(p), float(values[p].mean()), float(right[p].mean())) for p in parts if len(p)]


def calibration_error(bins: Sequence[Bin]) -> float | None:
    """Expected calibration error: mean of |accuracy - confidence|, weighted by bin size."""
    n = sum(b.n for b in bins)
    return sum(b.n * abs(b.accuracy - b.confidence) for b in bins) / n if n else None


def pass_at_k(n: int, right: int, k: int) -> float:
    """Chance that at least one of k out of n separate guesses is right, `right` of n being so.

    The unbiased estimator 1 - C(n - right, k) / C(n, k) (Chen et al., 2021, equation 1).
    Raises ValueError if k > n.
    """
    if k > n:
        raise ValueError(f"Test@{k} needs at least {k} guesses, there are {n}")
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def rounded(value: Any) -> Any:
    """A float, or those of a dict, rounded to what a reader needs."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return round(value, 4) if isinstance(value, float) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """Results of one of the revisions on the questions."""

    n: int  #: questions with an expected answer
    accuracy: float
    low: float  #: 95 % Wilson interval
    high: float
    tokens: float  #: generated, mean of a question
    confidence: float | None  #: mean of the best answers'


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two revisions on the questions that both searched with one strategy.

    `accuracy` is the new one's less the old one's, `tokens` the new one's share of the old one's.
    """

    strategy: str
    questions: int
    changed: int  #: questions with another best answer
    old: Side
    new: Side
    accuracy: Paired | None  #: None: no answer was expected
    tokens: Ratio

    def to_json(self) -> dict[str, Any]:
        """All of it, rounded to what a reader needs."""
        return dict(rounded(asdict(self)))


def compare(pairs: Iterable[Pair]) -> list[Comparison]:
    """A comparison for each strategy, by name."""
    ordered = sorted(pairs, key=lambda pair: pair.strategy)
    groups = groupby(ordered, key=lambda pair: pair.strategy)
    return [_compared(strategy, list(group)) for strategy, group in groups]


def _compared(strategy: str, pairs: Sequence[Pair]) -> Comparison:
    labelled = [p for p in pairs if p.old_correct is not None and p.new_correct is not None]
    old, new = [bool(p.old_correct) for p in labelled], [bool(p.new_correct) for p in labelled]
    tokens = [p.old_tokens for p in pairs], [p.new_tokens for p in pairs]
    return Comparison(
        strategy=strategy,
        questions=len(pairs),
        changed=sum(pair.changed for pair in pairs),
        old=_side(old, tokens[0], [pair.old_confidence for pair in pairs]),
        new=_side(new, tokens[1], [pair.new_confidence for pair in pairs]),
        accuracy=paired(new, old) if labelled else None,
        tokens=ratio(tokens[1], tokens[0]),
    )


def _side(
    right: Sequence[bool], tokens: Sequence[int], confidences: Sequence[float | None]
) -> Side:
    given = [value for value in confidences if value is not None]
    return Side(
        **accuracy(right),
        tokens=float(np.mean(tokens)),
        confidence=float(np.mean(given)) if given else None,
    )
