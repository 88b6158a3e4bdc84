"""Rewards: one number in [0, 1] for a rollout, greater is better.

The default is the model's own confidence (Marco-o1, arXiv 2411.14405, section 4). For token i
with log-probability p(t_i) and the k = 5 best candidates at its position:

    c_i = exp(p(t_i)) / sum_k exp(p(t_k))            v = (1/n) * sum_i c_i

The paper does not say what holds for a chosen token outside the top 5. Here the formula stands
as it is: such a token is no likelier than any of the five, so its c_i lies in [0, 1/5]; the
only way out of [0, 1] is rounding in the log-probabilities, and that is clamped.

| name | formula |
|---|---|
| confidence | mean c_i over the path since its last reflection: the default |
| path | mean c_i over the whole path (Marco-o1, section 4) |
| rollout | mean c_i over the rollout's own tokens (the paper's text) |
| minimum | least c_i of the path |
| product | product of c_i: the chance of the path among the best candidates |
| geometric | the product's n-th root |
| tail | mean c_i over the last TAIL tokens (DeepConf, arXiv 2508.15260, section 3.1) |
| group | lowest mean token confidence C over any WINDOW tokens (DeepConf), as C / (1 + C) |
| certainty | mean C over the path: self-certainty (arXiv 2502.18581) from the top k only |
| step | least mean c_i of a node on the path |
| weakest-line | least product of c_i over a line, since the last reflection |
| agreement | share of the other rollouts with the same answer |
| prm-min, prm-mean, prm-last, prm-product | of the step scores of a process reward model |
| verifier | what the caller's verifier said of the answer: 1 accepted, 0 rejected |

Token confidence C_i = -(1/k) sum_j log P_i(j) over the k best candidates.

A search, the verification of a stored one and scoring again all compute a reward here, by its
name; a name's formula therefore never changes. None needs a token to be generated again. Those in
`EXTERNAL` are formulas over scores that a service gave (`Branch.scores`): the caller of the search
asks for them (marco_search.scorers), so that the search itself does no I/O, and they are stored
with the rollout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import exp, inf, log, prod
from typing import Any, Protocol

from marco_search.search.branches import Token

TAIL = 32  # tokens
_LEAST = 1e-9  # of a c_i whose logarithm is taken
# Log of a chance so small that 1 less it is 1: a line may be thousands of tokens long.
_LOST = -40.0
WINDOW = 16  # tokens; DeepConf's 1024 to 2048 is longer than whole answers of a small model


def token_confidence(logprob: float, top_logprobs: Sequence[float]) -> float:
    """c_i in [0, 1] of one token from its log-prob and those of the best candidates.

    `top_logprobs` are natural logs in any order, at least one of them finite.
    Raises ValueError if it is empty.
    """
    if not top_logprobs:
        raise ValueError("a confidence needs the log-probabilities of the best candidates")
    total = sum(map(exp, top_logprobs))
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
    line_ends: tuple[bool, ...]  #: whether a line ends with the token


def token_scores(tokens: Sequence[Token], c: Sequence[float]) -> TokenScores:
    """The scores of a node with these tokens and confidences."""
    return TokenScores(
        c=tuple(c),
        logprob=tuple(t.logprob for t in tokens),
        mean_top=tuple(mean([p for _, p in t.top]) for t in tokens),
        line_ends=tuple("\n" in t.text for t in tokens),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRollout:
    """A rollout with an answer, as a reward sees it."""

    path: Sequence[TokenScores]  #: of its nodes, root first
    start: int  #: place on the path of the node that it was forked from
    answer: str | None  #: its key
    #: Answers of the rollouts to compare with: in a search those before it, afterwards all others.
    others: Sequence[str | None] = ()
    scores: Sequence[float] = ()  #: what a service said, for EXTERNAL rewards; in [0, 1]

    @property
    def c(self) -> list[float]:
        """c_i of the path's tokens."""
        return list(chain.from_iterable(s.c for s in self.path))

    @property
    def token_confidences(self) -> list[float]:
        """C_i of the path's tokens."""
        return [-m for s in self.path for m in s.mean_top]


Reward = Callable[[ScoredRollout], float]


def _since_reflection(rollout: ScoredRollout) -> Sequence[TokenScores]:
    # Only a reflection, put in by the search, is a node without tokens below the root.
    forced = [i for i, scores in enumerate(rollout.path) if i and not scores.c]
    return rollout.path[forced[-1] if forced else 0 :]


def _confidence(rollout: ScoredRollout) -> float:
    return mean([c for scores in _since_reflection(rollout) for c in scores.c])


def _weakest_line(rollout: ScoredRollout) -> float:
    nodes = _since_reflection(rollout)
    tokens = [pair for s in nodes for pair in zip(s.c, s.line_ends, strict=True)]
    return exp(min(line_log_probs(tokens), default=-inf))


def line_log_probs(tokens: Iterable[tuple[float, bool]]) -> Iterator[float]:
    """The sum of log c_i over each line, from (c_i, whether a line ends with it)."""
    total, open_line = 0.0, False
    for c, ends in tokens:
        total, open_line = total + log(max(c, _LEAST)), True
        if ends:
            yield total
            total, open_line = 0.0, False
    if open_line:
        yield total


def unsure(tokens: Iterable[tuple[Token, float]]) -> float:
    """1 - the chance of the line that these tokens (each with its c_i) begin."""
    total = 0.0
    for token, c in tokens:
        total += log(max(c, _LEAST))
        if total < _LOST or "\n" in token.text:
            break
    return 1.0 - exp(total)


def _log_product(rollout: ScoredRollout) -> float:
    return sum(log(max(c, _LEAST)) for c in rollout.c)


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
    "confidence": _confidence,
    "path": lambda r: mean(r.c),
    "rollout": lambda r: mean([c for scores in r.path[r.start + 1 :] for c in scores.c]),
    "minimum": lambda r: min(r.c, default=0.0),
    "product": lambda r: exp(_log_product(r)),
    "geometric": lambda r: exp(_log_product(r) / len(r.c)) if r.c else 0.0,
    "tail": lambda r: mean(r.c[-TAIL:]),
    "group": _group,
    "certainty": lambda r: _squeeze(mean(r.token_confidences)),
    "step": lambda r: min((mean(s.c) for s in r.path if s.c), default=0.0),
    "weakest-line": _weakest_line,
    "agreement": lambda r: mean([float(answer == r.answer) for answer in r.others]),
    "prm-min": lambda r: min(r.scores, default=0.0),
    "prm-mean": lambda r: mean(r.scores),
    "prm-last": lambda r: r.scores[-1] if r.scores else 0.0,
    "prm-product": lambda r: prod(r.scores) if r.scores else 0.0,
    "verifier": lambda r: r.scores[0] if r.scores else 0.0,
}
"""Name to reward."""

VERIFIER = "verifier"
EXTERNAL = {"prm-min", "prm-mean", "prm-last", "prm-product", VERIFIER}
"""Names of rewards over scores from outside; without scores they are 0."""

CONFIDENCE = ("confidence", "rollout")
"""Rewards that a search keeps account of itself. Votes weigh "confidence" under both."""


def known_rewards() -> list[str]:
    """What a job may name as its reward, the default first; a verifier has a name of its own."""
    return [name for name in REWARDS if name != VERIFIER]


def reward_of(config: Mapping[str, Any]) -> str:
    """The name of the reward in a stored configuration, whichever version wrote it.

    Version 0.1.0 called the field "value", and what is "confidence" now "path".
    """
    name = str(config.get("reward") or config.get("value", "path"))
    return "confidence" if name == "path" and "reward" not in config else name


class Answered(Protocol):
    """A rollout, as far as it matters for who votes."""

    @property
    def answer(self) -> str | None: ...
    @property
    def scores(self) -> Sequence[float] | None: ...


def voters(rollouts: Sequence[Answered], reward: str) -> tuple[list[int], bool]:
    """The places of those whose answers are voted on, and whether their values are the weights.

    Of an external reward those that have one; where none has, since the service failed, all count
    alike. What the verifier rejected has no vote, and what it accepted wins.
    """
    answered = [i for i, r in enumerate(rollouts) if r.answer is not None]
    if reward not in EXTERNAL:
        return answered, True
    scores = {i: scores for i in answered if (scores := rollouts[i].scores) is not None}
    scored = list(scores)
    if reward == VERIFIER:
        accepted = [i for i in scored if scores[i][0] == 1.0]
        scored = accepted or [i for i in scored if scores[i][0] > 0.0]
    return (scored, True) if scored else ([i for i in answered if i not in scores], False)
