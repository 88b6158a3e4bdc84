"""Rewards: one number in [0, 1] for a rollout, greater is better.

The default is the model's own confidence (Marco-o1, arXiv 2411.14405, section 4). For token i
with log-probability p(t_i) and the k = 5 best candidates at its position:

    c_i = exp(p(t_i)) / sum_k exp(p(t_k))            v = (1/n) * sum_i c_i

The paper does not say what holds for a chosen token outside the top 5. Here the formula stands
as it is: such a token is no likelier than any of the five, so its c_i lies in [0, 1/5]; the
only way out of [0, 1] is rounding in the log-probabilities, and that is clamped.

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

A search, the verification of a stored one and scoring again all compute a reward here, by its
name; a name's formula therefore never changes. None needs a token to be generated again. A
reward that calls a service is named in `EXTERNAL`: the caller of the search scores the
branches (`Branch.reward`), so that the search itself does no I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from math import exp, log

from marco_search.search.branches import Token

TAIL = 32  # tokens
WINDOW = 16  # tokens; DeepConf's 1024 to 2048 is longer than whole answers of a small model


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


def mean(values: Sequence[float]) -> float:
    """The mean; 0.0 for no values (nothing generated earns no reward)."""
    return sum(values) / len(values) if values else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScores:
    """Scores of a node's tokens, in order."""

    c: tuple[float, ...]  #: confidence c_i, in [0, 1]
    logprob: tuple[float, ...]  #: of the chosen token
    mean_top: tuple[float, ...]  #: mean log-prob of the TOP_K best candidates


def token_scores(tokens: Sequence[Token], c: Sequence[float]) -> TokenScores:
    """The scores of a node with these tokens and confidences."""
    return TokenScores(
        c=tuple(c),
        logprob=tuple(t.logprob for t in tokens),
        mean_top=tuple(mean([p for _, p in t.top]) for t in tokens),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRollout:
    """A rollout with an answer, as a reward sees it."""

    path: Sequence[TokenScores]  #: of its nodes, root first
    start: int  #: place on the path of the node that it was forked from
    answer: str | None  #: its key
    #: Answers of the rollouts to compare with: in a search those before it, afterwards all others.
    others: Sequence[str | None] = ()

    @property
    def c(self) -> list[float]:
        """c_i of the path's tokens."""
        return list(chain.from_iterable(s.c for s in self.path))

    @property
    def token_confidences(self) -> list[float]:
        """C_i of the path's tokens."""
        return [-m for s in self.path for m in s.mean_top]


Reward = Callable[[ScoredRollout], float]


def _since(rollout: ScoredRollout) -> float:
    # Only a reflection, put in by the search, is a node without tokens below the root.
    forced = [i for i, scores in enumerate(rollout.path) if i and not scores.c]
    after = rollout.path[forced[-1] if forced else 0 :]
    return mean([c for scores in after for c in scores.c])


def _log_product(rollout: ScoredRollout) -> float:
    return sum(log(max(c, 1e-9)) for c in rollout.c)


def _group(rollout: ScoredRollout) -> float:
    values = rollout.token_confidences
    if not values:
        return 0.0
    width = min(WINDOW, len(values))
    total = lowest = sum(values[:width])
    for i in range(width, len(values)):
        total += values[i] - values[i - width]
        lowest = min(lowest, total)
    return _squeeze(lowest / width)


def _squeeze(value: float) -> float:
    return max(0.0, value) / (1.0 + max(0.0, value))


REWARDS: dict[str, Reward] = {
    "path": lambda r: mean(r.c),
    "rollout": lambda r: mean([c for scores in r.path[r.start + 1 :] for c in scores.c]),
    "minimum": lambda r: min(r.c, default=0.0),
    "product": lambda r: exp(_log_product(r)),
    "geometric": lambda r: exp(_log_product(r) / len(r.c)) if r.c else 0.0,
    "since": _since,
    "tail": lambda r: mean(r.c[-TAIL:]),
    "group": _group,
    "certainty": lambda r: _squeeze(mean(r.token_confidences)),
    "step": lambda r: min((mean(s.c) for s in r.path if s.c), default=0.0),
    "agreement": lambda r: mean([float(answer == r.answer) for answer in r.others]),
}
"""Name to reward."""

EXTERNAL: set[str] = {"service"}
"""Names of rewards whose values come with the branches."""

CONFIDENCE = ("path", "rollout")
"""Values of `SearchConfig.value` that a search keeps account of itself: the confidence since the
path's last reflection (the reward "since"), and that of the rollout's own tokens."""


def known_rewards() -> list[str]:
    """What `SearchConfig.value` may be."""
    return [*CONFIDENCE, *(name for name in REWARDS if name not in CONFIDENCE), *sorted(EXTERNAL)]
