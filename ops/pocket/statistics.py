"""Small statistics for the model card: intervals, ranking quality, votes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence


def wilson(right: int, count: int) -> tuple[float, float]:
    """95 % Wilson interval of a proportion; (0, 1) without observations."""
    if count == 0:
        return 0.0, 1.0
    z = 1.959964
    share = right / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    spread = share * (1 - share) / count + z * z / (4 * count * count)
    half = z * math.sqrt(spread) / (1 + z * z / count)
    return centre - half, centre + half


def auroc(scores: Sequence[float], labels: Sequence[bool]) -> float:
    """Chance that a right one scores above a wrong one, ties half; NaN without both kinds."""
    right = sorted(s for s, label in zip(scores, labels, strict=True) if label)
    wrong = sorted(s for s, label in zip(scores, labels, strict=True) if not label)
    if not right or not wrong:
        return math.nan
    wins, below, equal_end = 0.0, 0, 0
    for score in right:
        while below < len(wrong) and wrong[below] < score:
            below += 1
        equal_end = max(equal_end, below)
        while equal_end < len(wrong) and wrong[equal_end] == score:
            equal_end += 1
        wins += below + 0.5 * (equal_end - below)
    return wins / (len(right) * len(wrong))


def majority(answers: Sequence[int | None]) -> int | None:
    """The most frequent answer, the earlier one on a tie; None without any answer."""
    votes = Counter(answer for answer in answers if answer is not None)
    return votes.most_common(1)[0][0] if votes else None
