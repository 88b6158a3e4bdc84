"""Rewards of a path from its token scores: one number, greater is more confident.

None needs a token to be generated again, so stored trees can be scored under any of them
(`rescoring`). All but those named "log-..." lie in [0, 1].

| name | formula |
|---|---|
| path | mean c_i over the path (Marco-o1, section 4, over the whole path) |
| rollout | mean c_i over the rollout's own tokens (the paper's text) |
| minimum | least c_i of the path |
| product | product of c_i: the chance of the path among the best candidates |
| geometric | the product's n-th root |
| since | mean c_i since the last reflection on the path |
| tail | mean c_i over the last TAIL tokens (DeepConf, arXiv 2508.15260, section 3.1) |
| group | lowest mean token confidence C over any WINDOW tokens (DeepConf), as C / (1 + C) |
| certainty | mean C over the path: self-certainty (arXiv 2502.18581) from the top k only |
| step | least mean c_i of a node on the path |
| agreement | share of the other rollouts with the same answer |

Token confidence C_i = -(1/k) sum_j log P_i(j) over the k best candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from marco_search.evaluation.traces import TokenScores, Trace, TracedRollout

TAIL = 32  # tokens
WINDOW = 16  # tokens; DeepConf's 1024 to 2048 is longer than whole answers of a small model

Reward = Callable[[Trace, TracedRollout], float]


def _scores(trace: Trace, path: Sequence[int]) -> list[TokenScores]:
    if not trace.scores:
        raise ValueError("the trace was kept without token scores")
    return [trace.scores[i] for i in path]


def _c(trace: Trace, path: Sequence[int]) -> list[float]:
    return [c for s in _scores(trace, path) for c in s.c]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _token_confidences(trace: Trace, rollout: TracedRollout) -> list[float]:
    return [-m for s in _scores(trace, rollout.path) for m in s.mean_top]


def path(trace: Trace, rollout: TracedRollout) -> float:
    """Mean c_i over the path."""
    return _mean(_c(trace, rollout.path)) if trace.scores else rollout.path_confidence


def rollout(trace: Trace, rollout: TracedRollout) -> float:
    """Mean c_i over the rollout's own tokens."""
    return _mean(_c(trace, rollout.own_path)) if trace.scores else rollout.confidence


def minimum(trace: Trace, rollout: TracedRollout) -> float:
    """Least c_i of the path."""
    return min(_c(trace, rollout.path), default=0.0)


def log_product(trace: Trace, rollout: TracedRollout) -> float:
    """Sum of log c_i; what `product` is the exponential of."""
    return sum(math.log(max(c, 1e-9)) for c in _c(trace, rollout.path))


def product(trace: Trace, rollout: TracedRollout) -> float:
    """Product of c_i over the path."""
    return math.exp(log_product(trace, rollout))


def geometric(trace: Trace, rollout: TracedRollout) -> float:
    """Geometric mean of c_i over the path."""
    n = len(_c(trace, rollout.path))
    return math.exp(log_product(trace, rollout) / n) if n else 0.0


def since(trace: Trace, rollout: TracedRollout) -> float:
    """Mean c_i since the last reflection: what was reconsidered does not count."""
    # Only a reflection, put in by the search, is a node without tokens below the root.
    forced = [i for i, n in enumerate(rollout.path) if i and not _scores(trace, [n])[0].c]
    return _mean(_c(trace, rollout.path[forced[-1] if forced else 0 :]))


def tail(trace: Trace, rollout: TracedRollout) -> float:
    """Mean c_i over the last TAIL tokens."""
    return _mean(_c(trace, rollout.path)[-TAIL:])


def group(trace: Trace, rollout: TracedRollout) -> float:
    """Lowest mean C over a window of WINDOW tokens, mapped to [0, 1)."""
    values = _token_confidences(trace, rollout)
    if not values:
        return 0.0
    width = min(WINDOW, len(values))
    total = lowest = sum(values[:width])
    for i in range(width, len(values)):
        total += values[i] - values[i - width]
        lowest = min(lowest, total)
    return _squeeze(lowest / width)


def certainty(trace: Trace, rollout: TracedRollout) -> float:
    """Mean C over the path, mapped to [0, 1)."""
    return _squeeze(_mean(_token_confidences(trace, rollout)))


def step(trace: Trace, rollout: TracedRollout) -> float:
    """Least mean c_i of a node on the path."""
    return min((_mean(s.c) for s in _scores(trace, rollout.path) if s.c), default=0.0)


def agreement(trace: Trace, rollout: TracedRollout) -> float:
    """Share of the other rollouts with the same answer."""
    others = len(trace.rollouts) - 1
    same = sum(r.answer == rollout.answer for r in trace.rollouts) - 1
    return same / others if others else 0.0


def _squeeze(value: float) -> float:
    return max(0.0, value) / (1.0 + max(0.0, value))


REWARDS: dict[str, Reward] = {
    "path": path,
    "rollout": rollout,
    "minimum": minimum,
    "product": product,
    "geometric": geometric,
    "since": since,
    "tail": tail,
    "group": group,
    "certainty": certainty,
    "step": step,
    "agreement": agreement,
}
"""Reward name to reward."""
