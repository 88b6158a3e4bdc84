"""When a search ends, and the size of its next round: arithmetic on its budgets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum

from marco_search.search.branches import Finish
from marco_search.search.config import SearchConfig, Selection
from marco_search.search.rewards import VERIFIER
from marco_search.search.tree import Rollout
from marco_search.search.votes import Aggregation, RankedAnswer, decided, posterior

MIN_BRANCH_TOKENS = 8
"""A branch with room for fewer tokens is not started: it could not hold an answer."""


class StopReason(StrEnum):
    """Why a search ended."""

    #: The rollout budget is spent.
    ROLLOUTS = "rollouts"
    #: Too little of the token budget is left for another branch.
    TOKENS = "tokens"
    #: The time budget is spent.
    SECONDS = "seconds"
    #: No remaining rollout can change the winner.
    DECIDED = "decided"
    #: The winner is ahead with the probability that the configuration asks for.
    LEAD = "lead"
    #: The last rollouts brought no new answer.
    NOTHING_NEW = "nothing_new"
    #: The verifier accepted an answer.
    VERIFIED = "verified"
    #: The caller stopped it.
    CANCELLED = "cancelled"
    #: The job's deadline has passed.
    DEADLINE = "deadline"
    #: Not the end: the worker released the job, and it continues elsewhere.
    RELEASED = "released"


def spent(
    config: SearchConfig,
    rollouts: Sequence[Rollout],
    tokens: int,
    elapsed_s: float,
    ranked: Callable[[], list[RankedAnswer]],
) -> StopReason | None:
    """Why no further round should start, if so; `tokens` were generated so far."""
    if config.reward == VERIFIER and any(r.value == 1.0 for r in rollouts):
        return StopReason.VERIFIED
    if len(rollouts) >= config.rollouts:
        return StopReason.ROLLOUTS
    enough = tokens + min(MIN_BRANCH_TOKENS, config.max_new_tokens)
    if config.max_tokens is not None and enough > config.max_tokens:
        return StopReason.TOKENS
    if config.max_seconds is not None and elapsed_s >= config.max_seconds:
        return StopReason.SECONDS
    # However far one is ahead, another one may still be accepted.
    if config.early_stop and config.reward != VERIFIER and config.choice is not Aggregation.BEST:
        answers = ranked()
        if decided(answers, config.rollouts - len(rollouts)):
            return StopReason.DECIDED
        if config.stop is not None and posterior(answers) >= config.stop:
            return StopReason.LEAD
        if config.patience is not None and _stale(rollouts, answers) >= config.patience:
            return StopReason.NOTHING_NEW
    return None


def _stale(rollouts: Sequence[Rollout], answers: Sequence[RankedAnswer]) -> int:
    """The number of rollouts since the last one that brought a new answer."""
    newest = max((min(a.rollout_ids) for a in answers), default=len(rollouts))
    return len(rollouts) - 1 - newest


def round_size(config: SearchConfig, rollouts: Sequence[Rollout], tokens: int) -> tuple[int, int]:
    """(branches of the next round, tokens each may generate); never more than the budget."""
    count = min(config.parallel, config.rollouts - len(rollouts))
    if config.selection is Selection.BEST_FIRST:
        # Branches in flight can't be cancelled: risk at most a third of what was tried.
        count = min(count, max(1, len(rollouts) // 2))
    if config.max_tokens is None:
        return count, config.max_new_tokens
    left = config.max_tokens - tokens
    # One and a half times the length so far; the maximum before any is known.
    done = [r.generated_tokens for r in rollouts if r.finish is Finish.STOP]
    expected = 1.5 * sum(done) / len(done) if done else float(config.max_new_tokens)
    count = max(1, min(count, int(left / max(expected, MIN_BRANCH_TOKENS))))
    return count, min(config.max_new_tokens, left // count)
