"""The model's own confidence as a reward (Marco-o1, arXiv 2411.14405, section 4).

For token i with log-probability p(t_i) and the k = 5 best candidates at its position:

    c_i = exp(p(t_i)) / sum_k exp(p(t_k))            v = (1/n) * sum_i c_i

The paper does not say what holds for a chosen token outside the top 5. Our rule: the
formula stands as it is. Such a token is no likelier than any of the five, so its c_i lies
in [0, 1/5]; the only way out of [0, 1] is rounding in the log-probabilities, and that is
clamped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import exp

from marco_search.search.branches import Token


def token_confidence(logprob: float, top_logprobs: Sequence[float]) -> float:
    """c_i in [0, 1] of one token from its log-prob and those of the best candidates.

    `top_logprobs` are natural logs in any order, at least one of them finite.
    Raises ValueError if it is empty.
    """
    if not top_logprobs:
        raise ValueError("a confidence needs the log-probabilities of the best candidates")
    total = sum(exp(p) for p in top_logprobs)
    if total <= 0.0:
        return 0.0
    return min(1.0, exp(logprob) / total)


def confidences(tokens: Iterable[Token]) -> tuple[float, ...]:
    """c_i of each token, in order."""
    return tuple(token_confidence(t.logprob, [p for _, p in t.top]) for t in tokens)


def mean_confidence(values: Sequence[float]) -> float:
    """v = mean of c_i; 0.0 for no tokens (nothing generated earns no reward)."""
    return sum(values) / len(values) if values else 0.0
