"""Scores from outside: a process reward model, or a caller's verifier.

The engine asks for them before it passes a round's branches to the search, which does no I/O and
only has the formulas over them (`marco_search.search.rewards`). A scorer never fails: what has no
score says why, is stored so, and has no weight in the vote. A round waits for a reward model at
most MARCO_REWARD_TIMEOUT_S, for a verifier MARCO_VERIFIER_TIMEOUT_S for each eight new answers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

from marco_search import settings as settings_module
from marco_search.errors import InvalidSettings
from marco_search.scorers.exchange import Outcome, Output, Server
from marco_search.scorers.reward_model import RewardModel
from marco_search.scorers.verifier import Verifier
from marco_search.search.config import SearchConfig
from marco_search.search.rewards import EXTERNAL
from marco_search.search.tree import Rollout

__all__ = ["Outcome", "Output", "Scorer", "open_scorer"]

log = logging.getLogger(__name__)

Scorer = Callable[[Sequence[Output]], Sequence[Outcome]]
"""Outputs with an answer -> for each its scores, or why it has none."""


def open_scorer(config: SearchConfig, earlier: Iterable[Rollout] = ()) -> Scorer | None:
    """What scores the rollouts of a search; None: its reward needs nothing from outside.

    `earlier` are those that it has: their answers are not verified again. Raises InvalidSettings
    if the reward model or the verifier is not set up here.
    """
    if config.reward not in EXTERNAL:
        return None
    settings = settings_module.load()
    if config.verifier is None:
        return _logged(RewardModel(settings, whole=config.reward == "prm-last"), "reward model")
    target = settings.verifiers.get(config.verifier)
    if target is None:
        known = ", ".join(settings.verifiers) or "none"
        raise InvalidSettings(f"MARCO_VERIFIERS: no verifier {config.verifier!r}; known: {known}")
    server = None
    if isinstance(target, str):
        server = Server("MARCO_VERIFIERS", target, settings.verifier_api_key)
    known_scores = {str(r.answer): r.scores for r in earlier if r.answer and r.scores}
    verifier = Verifier(server or target, settings.verifier_timeout_s, known_scores)
    return _logged(verifier, f"verifier {config.verifier}")


def _logged(scorer: Scorer, name: str) -> Scorer:
    """The scorer, whose failures say its name and are logged."""

    def scored(outputs: Sequence[Output]) -> Sequence[Outcome]:
        found = [s if isinstance(s, tuple) else f"{name}: {s}" for s in scorer(outputs)]
        failures = [s for s in found if isinstance(s, str)]
        if failures:
            log.warning("no scores for %d of %d: %s", len(failures), len(found), failures[0])
        return found

    return scored
