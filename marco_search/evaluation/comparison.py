"""Two revisions of a model on the same questions, paired question by question."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np

from marco_search.evaluation.statistics import Paired, Ratio, accuracy, paired, ratio, rounded
from marco_search.store.reads.revisions import Pair


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """What one of the revisions made of the questions."""

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
