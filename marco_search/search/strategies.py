"""The strategies a job can name, each a set of defaults for `SearchConfig`.

- cot: one greedy chain of thought.
- vote: self-consistency, independent samples and a majority vote (Wang et al., 2022).
- best-of-n: independent samples, the most confident one.
- step, mini-step-64, mini-step-32: Marco-o1's MCTS with actions of that size. mini-step-16
  and -8 are for models whose whole answers are shorter than a hundred tokens or two.
- auto: what did best in our measurements (docs/search.md): MCTS by steps that begins with
  the greedy thought, takes a second look at it where it is unsure, and draws fresh thoughts
  while that has not settled it; a sharpened vote, and an end as soon as one answer is clearly
  ahead.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from marco_search.errors import SearchError
from marco_search.search.config import Action, Choice, Reflection, SearchConfig

DEFAULT_STRATEGY = "auto"
WIDEST = 32
"""Independent samples that go out at once. A crash loses at most these."""

_TREE: dict[str, Any] = {"choice": Choice.WEIGHTED}
_FLAT: dict[str, Any] = {"action": Action.WHOLE}

STRATEGIES: dict[str, dict[str, Any]] = {
    "cot": _FLAT | {"rollouts": 1, "temperature": 0.0, "choice": Choice.BEST, "early_stop": False},
    "vote": _FLAT | {"choice": Choice.VOTE},
    "best-of-n": _FLAT | {"choice": Choice.BEST, "early_stop": False},
    "step": _TREE | {"action": Action.STEP},
    "mini-step-64": _TREE | {"action": Action.MINI_STEP, "mini_step_tokens": 64},
    "mini-step-32": _TREE | {"action": Action.MINI_STEP, "mini_step_tokens": 32},
    "mini-step-16": _TREE | {"action": Action.MINI_STEP, "mini_step_tokens": 16},
    "mini-step-8": _TREE | {"action": Action.MINI_STEP, "mini_step_tokens": 8},
    "auto": _TREE
    | {
        "action": Action.STEP,
        "parallel": 2,
        "first_temperature": 0.0,
        "root_width": 1,
        "widening": 1.0,
        "width": 2,
        # A thought is redone as a whole before its steps are sampled again.
        "reflection": Reflection.BRANCH,
        "reflect_first": True,
        "reflection_width": 2,
        "sharpness": 128.0,
        "lead": 0.7,
    },
}


def configure(strategy: str, **overrides: Any) -> SearchConfig:
    """The configuration of a strategy with some fields set otherwise; None means default.

    "cot" is one rollout whatever budget is given. Samples that do not depend on each other
    go out together, up to WIDEST at once, unless `parallel` is given. Raises SearchError for
    an unknown strategy, naming those there are.
    """
    try:
        defaults = STRATEGIES[strategy]
    except KeyError:
        known = ", ".join(STRATEGIES)
        raise SearchError(f"unknown strategy {strategy!r}; use one of {known}") from None
    given = {k: v for k, v in overrides.items() if v is not None}
    if strategy == "cot":
        given.pop("rollouts", None)
    config = SearchConfig(strategy=strategy, **(defaults | given))
    if "parallel" in given or not _independent(config):
        return config
    return replace(config, parallel=max(config.parallel, min(config.rollouts, WIDEST)))


def _independent(config: SearchConfig) -> bool:
    """True if nothing is decided between rounds: how many there are changes no answer."""
    return (
        config.action is Action.WHOLE
        and config.reflection is Reflection.NEVER
        and (not config.early_stop or config.choice is Choice.BEST)
        and config.max_tokens is None
        and config.max_seconds is None
    )
