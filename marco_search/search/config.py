"""The configuration of one search, as one frozen value that the audit trail can store.

Two searches with equal `SearchConfig`, prompt and model grow the same tree. `STRATEGIES` are
the names that a job can give, each a set of defaults for it:

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

from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from typing import Any

from marco_search.errors import SearchError
from marco_search.search.actions import ACTIONS, Action, ActionKind
from marco_search.search.branches import MARCO_O1, TurnFormat
from marco_search.search.rewards import REWARDS, VERIFIER, reward_of
from marco_search.search.votes import Aggregation


class ReflectionPolicy(StrEnum):
    """When a finished thought is made to reconsider (Marco-o1, section 5)."""

    NEVER = "never"
    #: Closing the thought and reflecting are both tried.
    BRANCH = "branch"
    #: No thought closes before it has reflected.
    ALWAYS = "always"


class Selection(StrEnum):
    """The rule that picks a child on the way down."""

    UCT = "uct"
    PUCT = "puct"


class Backup(StrEnum):
    """What a node's quality Q is, from the values of the rollouts through it."""

    #: As in Marco-o1.
    MEAN = "mean"
    MAX = "max"
    #: The mean of the two.
    MIXED = "mixed"


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig:
    """All that decides how a search runs. Tokens are generated tokens unless noted otherwise."""

    strategy: str  #: the name it was made from; not read by the search
    action: str  #: how a thought is cut into nodes, a name in `ACTIONS`
    mini_step_tokens: int = 64  #: length of a mini-step
    rollouts: int = 16  #: most rollouts
    max_tokens: int | None = None  #: most tokens over the whole search; None: no limit
    max_seconds: float | None = None  #: no new round starts after this; None: no limit
    max_new_tokens: int = 1024  #: most tokens of one branch
    temperature: float = 1.0  #: of sampling; 0 is greedy
    temperature_decay: float = 1.0  #: factor for each edge from the root to where a branch forks
    #: Of the first sample at the root and after each reflection; None: as all others.
    first_temperature: float | None = None
    top_p: float = 1.0  #: nucleus of sampling
    seed: int = 0  #: all randomness follows from it
    selection: Selection = Selection.UCT  #: rule for the way down
    exploration: float = 0.5  #: c of UCT or PUCT, over values scaled to [0, 1] when `normalise`
    normalise: bool = True  #: scale values by the least and greatest seen in this tree
    virtual_loss: float = 1.0  #: lost visits per branch in flight; 0 counts them as visits only
    branching: int = 2  #: k of a fork below the root
    width: int = 3  #: samples drawn at an inner node
    #: Samples drawn at the root; for whole thoughts all of them are drawn there.
    root_width: int = 4
    widening: float = 0.0  #: share of the visits that may be fresh samples at the root as well
    answer_width: int = 1  #: samples drawn where a thought ends
    reuse: bool = True  #: false: of a rollout only the first node is sampled again
    parallel: int = 8  #: most branches in flight
    reward: str = "confidence"  #: what is backed up, a name in `rewards.REWARDS`
    verifier: str | None = None  #: its name, for the reward "verifier"
    backup: Backup = Backup.MEAN  #: what a node's quality is
    choice: Aggregation = Aggregation.WEIGHTED  #: how the answer is chosen
    sharpness: float = 1.0  #: a weighted vote weighs a rollout's value to this power
    early_stop: bool = True  #: stop when the vote can't change any more
    #: With `early_stop`: also stop when the vote is led by this weight; None: don't.
    lead: float | None = None
    reflection: ReflectionPolicy = ReflectionPolicy.NEVER  #: when a finished thought reconsiders
    max_reflections: int = 1  #: most reflections on one path
    #: Samples drawn after a reflection; None: `width`, or 1 for whole thoughts.
    reflection_width: int | None = None
    reflect_first: bool = False  #: with BRANCH: steps before a reflection are not sampled again
    turn: TurnFormat = MARCO_O1  #: how the model writes thoughts and answers
    profile: str = ""  #: name and hash of the profile it was made from; not read by the search

    def __post_init__(self) -> None:
        """Raises SearchError for a value that no search can run with."""
        for name in (f.name for f in fields(self) if f.type in ("int", "int | None")):
            count = getattr(self, name)
            if name != "seed" and count is not None and count < 1:
                raise SearchError(f"{name} must be at least 1, not {count}")
        for name, valid in (
            ("first_temperature", self.first_temperature is None or self.first_temperature >= 0),
            ("temperature_decay", 0.0 < self.temperature_decay <= 1.0),
            ("widening", 0.0 <= self.widening <= 1.0),
            ("sharpness", self.sharpness >= 0),
            ("lead", self.lead is None or self.lead > 0),
        ):
            if not valid:
                raise SearchError(f"{name} is out of range: {getattr(self, name)}")
        for what, name, known in (
            ("action", self.action, list(ACTIONS)),
            ("reward", self.reward, list(REWARDS)),
        ):
            if name not in known:
                raise SearchError(f"unknown {what} {name!r}; use one of {', '.join(known)}")
        if (self.reward == VERIFIER) != (self.verifier is not None):
            raise SearchError(
                "a verifier's name goes with the reward 'verifier', and with no other"
            )

    @property
    def action_kind(self) -> ActionKind:
        """How thoughts are cut."""
        return ACTIONS[self.action]

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` gives the same configuration back."""
        return {k: str(v) if isinstance(v, StrEnum) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> SearchConfig:
        """The configuration written by `to_json`: names of choices stand for them."""
        known = {k: v for k, v in data.items() if k != "value"} | {"reward": reward_of(data)}
        made: dict[str, Any] = {k: kind(data[k]) for k, kind in _CHOICES.items() if k in data}
        if isinstance(turn := data.get("turn"), dict):
            texts: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in turn.items()}
            made["turn"] = TurnFormat(**texts)
        return cls(**known | made)


_CHOICES: dict[str, type[StrEnum]] = {
    "selection": Selection,
    "backup": Backup,
    "choice": Aggregation,
    "reflection": ReflectionPolicy,
}


DEFAULT_STRATEGY = "auto"
WIDEST = 32
"""Independent samples that go out at once. A crash loses at most these."""

_TREE: dict[str, Any] = {"choice": Aggregation.WEIGHTED}
_FLAT: dict[str, Any] = {"action": Action.WHOLE}
_GREEDY: dict[str, Any] = {"rollouts": 1, "temperature": 0.0, "early_stop": False}

STRATEGIES: dict[str, dict[str, Any]] = {
    "auto": _TREE
    | {
        "action": Action.STEP,
        "parallel": 2,
        "first_temperature": 0.0,
        "root_width": 1,
        "widening": 1.0,
        "width": 2,
        # A thought is redone as a whole before its steps are sampled again.
        "reflection": ReflectionPolicy.BRANCH,
        "reflect_first": True,
        "reflection_width": 2,
        "sharpness": 128.0,
        "lead": 0.7,
    },
    "cot": _FLAT | _GREEDY | {"choice": Aggregation.BEST},
    "vote": _FLAT | {"choice": Aggregation.VOTE},
    "best-of-n": _FLAT | {"choice": Aggregation.BEST, "early_stop": False},
    "step": _TREE | {"action": Action.STEP},
    "mini-step-64": _TREE | {"action": Action.MINI_STEP, "mini_step_tokens": 64},
    "mini-step-32": _TREE | {"action": Action.MINI_STEP, "mini_step_tokens": 32},
    "mini-step-16": _TREE | {"action": Action.MINI_STEP, "mini_step_tokens": 16},
    "mini-step-8": _TREE | {"action": Action.MINI_STEP, "mini_step_tokens": 8},
}
"""Strategy to its defaults. The names of `SearchOptions.strategy` and the help texts follow."""


def configure(strategy: str, **overrides: Any) -> SearchConfig:
    """The configuration of a strategy with some fields set otherwise; None means default.

    Choices (`selection`, `reflection`, ...) may be given by name.
    "cot" is one rollout whatever budget is given. Samples that do not depend on each other
    go out together, up to WIDEST at once, unless `parallel` is given. Raises SearchError for
    an unknown strategy, naming those there are.
    """
    if strategy not in STRATEGIES:
        known = ", ".join(STRATEGIES)
        raise SearchError(f"unknown strategy {strategy!r}; use one of {known}")
    given = {k: v for k, v in overrides.items() if v is not None}
    if strategy == "cot":
        given.pop("rollouts", None)
    if "verifier" in given:
        given["reward"] = VERIFIER
    config = SearchConfig.from_json({"strategy": strategy} | STRATEGIES[strategy] | given)
    # Nothing is decided between the rounds: how many there are changes no answer.
    independent = (
        not config.action_kind.branches_inside
        and config.reflection is ReflectionPolicy.NEVER
        and config.verifier is None
        and (not config.early_stop or config.choice is Aggregation.BEST)
        and config.max_tokens is None
        and config.max_seconds is None
    )
    if independent and "parallel" not in given:
        return replace(config, parallel=max(config.parallel, min(config.rollouts, WIDEST)))
    return config
