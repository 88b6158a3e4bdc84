"""Rewards that call a service: the names in `rewards.EXTERNAL`, and how each is computed.

The engine scores a round's branches before it passes them to the search, which does no I/O. The
values are stored like any other reward; verification can't compute them again and says nothing
about them but that they are in [0, 1].
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from urllib.error import URLError
from urllib.request import Request, urlopen

from marco_search import settings as settings_module
from marco_search.errors import InvalidSettings, RuntimeUnavailable
from marco_search.search.branches import Branch, Expansion, Finish

Scorer = Callable[[Sequence[str]], Sequence[float]]
"""Whole texts (prompt, thought and answer) -> a value in [0, 1] for each."""


def _service(texts: Sequence[str]) -> Sequence[float]:
    """What the reward model at MARCO_REWARD_URL returns: {"texts": [...]} -> {"rewards": [...]}."""
    settings = settings_module.load()
    if settings.reward_url is None:
        raise InvalidSettings("MARCO_REWARD_URL: not set; the reward 'service' needs its address")
    request = Request(
        settings.reward_url,
        data=json.dumps({"texts": list(texts)}).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urlopen(request, timeout=settings.runtime_timeout_s) as reply:
            rewards = [float(value) for value in json.load(reply)["rewards"]]
    except (URLError, OSError, ValueError, KeyError, TypeError) as error:
        raise RuntimeUnavailable(f"MARCO_REWARD_URL: {type(error).__name__}: {error}") from error
    if len(rewards) != len(texts) or not all(0.0 <= value <= 1.0 for value in rewards):
        raise RuntimeUnavailable("MARCO_REWARD_URL: not one value in [0, 1] for each text")
    return rewards


SCORERS: dict[str, Scorer] = {"service": _service}
"""Name to scorer: exactly the names in `rewards.EXTERNAL`."""


def scored(
    name: str, expansions: Sequence[Expansion], branches: Sequence[Branch]
) -> Sequence[Branch]:
    """The branches with the rewards of those that ended."""
    forked = {r.branch_id: e for e in expansions for r in e.branches}
    ended = {
        b.branch_id: forked[b.branch_id].prefix + b.continuation(forked[b.branch_id].turn)
        for b in branches
        if b.finish is Finish.STOP
    }
    rewards = SCORERS[name](list(ended.values())) if ended else ()
    by_branch = dict(zip(ended, rewards, strict=True))
    return [replace(b, reward=by_branch.get(b.branch_id)) for b in branches]
