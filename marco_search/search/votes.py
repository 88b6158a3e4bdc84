"""Ranks the distinct answers that a search's rollouts reached.

Pure: no text is looked at, only the key that a job kind gave each answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from marco_search.errors import SearchError


class Aggregation(StrEnum):
    """How the answer is chosen among the rollouts."""

    #: One rollout, one vote (self-consistency).
    VOTE = "vote"
    #: A rollout's vote weighs its value.
    WEIGHTED = "weighted"
    #: The single most confident rollout decides.
    BEST = "best"


_ROUNDING = 1e-9
"""Weights are sums of floats: a lead no larger than this does not count."""


class Candidate(NamedTuple):
    """The answer of one rollout. `value` is the rollout's reward, in [0, 1]."""

    key: str  #: answers with equal keys are the same answer
    value: float
    rollout_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedAnswer:
    """One distinct answer and the rollouts that reach it."""

    key: str
    votes: int  #: number of its rollouts
    confidence: float  #: mean value of its rollouts
    weight: float  #: what it was ranked by: votes, sum of powers of values, or best value
    share: float  #: weight / total weight of all answers
    best_value: float
    best_rollout_id: int  #: the one with the best value; of equals, the earliest
    rollout_ids: tuple[int, ...]  #: ascending


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How a value becomes the weight of a vote: min(1, (v / e^reference)^(sharpness / spread)).

    `reference` and `spread` are where the logs of a model's values lie and how far apart; with
    the defaults a weight is v to the power of `sharpness`.
    """

    sharpness: float = 1.0  #: 0: all votes count alike
    spread: float = 1.0  #: standard deviation of log v
    reference: float = 0.0  #: log v of a rollout whose vote counts in full

    def weight(self, value: float) -> float:
        """The weight in [0, 1] of a vote with this value."""
        power = self.sharpness / self.spread
        try:
            return min(1.0, float((value / math.exp(self.reference)) ** power))
        except (OverflowError, ZeroDivisionError):  # it lies too far from the reference
            above = value > 0.0 and math.log(value) > self.reference
            return 1.0 if above or not power else 0.0


def rank(
    candidates: Sequence[Candidate], how: Aggregation, scale: Scale | None = None
) -> list[RankedAnswer]:
    """The distinct answers, best first. The order of `candidates` does not matter.

    In a weighted vote the weights of `scale` are added up: argmax_a sum_i w(v_i) [a_i = a].
    Ties go to the higher best value, then to the lower rollout id.
    Raises SearchError for a value outside [0, 1] or a rollout given twice.
    """
    groups: dict[str, list[Candidate]] = {}
    if len({c.rollout_id for c in candidates}) < len(candidates):
        raise SearchError("a rollout was given twice")
    for candidate in candidates:
        if not 0.0 <= candidate.value <= 1.0:
            raise SearchError(
                f"rollout {candidate.rollout_id} has value {candidate.value}, not in [0, 1]"
            )
        groups.setdefault(candidate.key, []).append(candidate)

    scale = scale or Scale()
    weights = {key: _weight(group, how, scale) for key, group in groups.items()}
    total = math.fsum(weights.values())
    answers = []
    for key, group in groups.items():
        best = min(group, key=lambda c: (-c.value, c.rollout_id))
        # fsum is exact, so that the sum does not depend on the order of arrival.
        mean = math.fsum(c.value for c in group) / len(group)
        # Values may all be 0; then the votes are what is left to share by.
        share = weights[key] / total if total else len(group) / len(candidates)
        answers.append(
            RankedAnswer(
                key=key,
                votes=len(group),
                confidence=min(1.0, mean),
                weight=weights[key],
                share=share,
                best_value=best.value,
                best_rollout_id=best.rollout_id,
                rollout_ids=tuple(sorted(c.rollout_id for c in group)),
            )
        )
    answers.sort(key=lambda a: (-a.weight, -a.best_value, a.best_rollout_id))
    return answers


def _weight(group: Sequence[Candidate], how: Aggregation, scale: Scale) -> float:
    if how == Aggregation.VOTE:
        return float(len(group))
    if how == Aggregation.WEIGHTED:
        return math.fsum(scale.weight(c.value) for c in group)
    return max(c.value for c in group)


def decided(ranked: Sequence[RankedAnswer], remaining: int) -> bool:
    """True if `remaining` further rollouts of weight at most 1 each can't change the leader.

    All of them might go to the runner-up, or to an answer not seen yet. `ranked` comes from
    `rank`. With "best" a single better rollout may win, so only `remaining` = 0 decides.
    """
    if not ranked:
        return False
    return remaining <= 0 or ranked[0].weight - _second(ranked) > remaining + _ROUNDING


def _second(ranked: Sequence[RankedAnswer]) -> float:
    """The weight of the runner-up; 0.0 if there is none."""
    return ranked[1].weight if len(ranked) > 1 else 0.0


def posterior(ranked: Sequence[RankedAnswer]) -> float:
    """The chance that the leader is ahead of the runner-up for good; 0.0 without answers.

    As in adaptive consistency (Aggarwal et al., 2023): with weights a and b of the two, the
    share of the leader among further votes for either has the distribution Beta(1 + a, 1 + b);
    this is how much of it lies above 1/2.
    """
    if not ranked:
        return 0.0
    return _above_half(1.0 + ranked[0].weight, 1.0 + _second(ranked))


def _above_half(a: float, b: float) -> float:
    """P(x > 1/2) of Beta(a, b), by the series of the incomplete beta function I(1/2; b, a).

    It is 2^-(a+b) / (b B(a, b)) * sum_n of the product over i < n of
    (a + b + i) / (2 (b + 1 + i)).
    """
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    term = total = math.exp(-(a + b) * math.log(2.0) - log_beta) / b
    if not term:  # too small for a float, as where a is a thousand more than b
        return float(a > b)
    i = 0
    while term > 1e-12 * total:
        term *= (a + b + i) / (2.0 * (b + 1.0 + i))
        total += term
        i += 1
    return min(1.0, total)
