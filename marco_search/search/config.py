"""The configuration of one search, as one frozen value that the audit trail can store.

Two searches with equal `SearchConfig`, prompt and model grow the same tree. `STRATEGIES` are
the names that a job can give, each a set of defaults for it:

Flat, no branch starts inside a thought:

- cot: one greedy chain of thought.
- vote: self-consistency, independent samples and a majority vote (Wang et al., 2022).
- best-of-n: independent samples, the most confident one.
- adaptive: the greedy thought, its reflection, then fresh thoughts until one answer is ahead.

Tree searches, which fork inside thoughts:

- tree: as adaptive, but it forks where the model was unsure, at the candidate that it nearly
  chose (`marco_search.search.best_first`), and draws fresh thoughts once such forks score lower.
- step, mini-step-64, mini-step-32: Marco-o1's MCTS with actions of that size. mini-step-16
  and -8 are for models whose whole answers are shorter than a hundred tokens or two.

"auto" is the one that did best in the measurements, `AUTO`, unless a profile sets another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from marco_search.errors import SearchError
from marco_search.search.actions import ACTIONS, Action, ActionKind
from marco_search.search.branches import MARCO_O1, ReflectionPlacement, TurnFormat
from marco_search.search.rewards import REWARDS, VERIFIER, reward_of
from marco_search.search.votes import Aggregation, Scale


class ReflectionPolicy(StrEnum):
    """When a finished thought has to be reconsidered (Marco-o1, section 5)."""

    NEVER = "never"
    #: Closing the thought and reflecting are both tried.
    BRANCH = "branch"
    #: No thought closes before it has reflected.
    ALWAYS = "always"


class Selection(StrEnum):
    """The rule that chooses what to try next."""

    #: These two on the way down from the root.
    UCT = "uct"
    PUCT = "puct"
    #: Over all children that the tree could have.
    BEST_FIRST = "best_first"


Count = Annotated[int, Field(ge=1, le=4096)]
Tokens = Annotated[int, Field(ge=1, lt=2**31)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig:
    """Everything that determines how a search runs. Tokens are generated tokens unless noted.

    `from_json` checks types and bounds.
    """

    strategy: str  #: the name it was made from; not read by the search
    action: str  #: how a thought is cut into nodes, a name in `ACTIONS`
    mini_step_tokens: Tokens = 64  #: length of a mini-step
    rollouts: Count = 16  #: maximum number of rollouts
    #: Maximum tokens over the whole search; None: no limit.
    max_tokens: Annotated[int, Field(ge=1, lt=2**63)] | None = None
    #: No new round starts after this; None: no limit.
    max_seconds: Annotated[float, Field(gt=0)] | None = None
    max_new_tokens: Tokens = 1024  #: maximum tokens of one branch
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0  #: of sampling; 0 is greedy
    #: Best first: of the first thought and its reflection; None: as all others.
    first_temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0  #: nucleus of sampling
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0  #: all randomness follows from it
    selection: Selection = Selection.UCT  #: rule for the way down
    #: c of UCT or PUCT, over values scaled to [0, 1].
    exploration: Annotated[float, Field(ge=0, le=100)] = 0.5
    branching: Count = 2  #: k of a fork below the root
    width: Count = 3  #: samples drawn at an inner node
    #: Samples drawn at the root, half of them at first; of whole thoughts all of them.
    root_width: Count = 4
    answer_width: Count = 1  #: samples drawn where a thought ends
    parallel: Count = 8  #: maximum branches in flight
    reward: str = "confidence"  #: what is backed up, a name in `rewards.REWARDS`
    verifier: str | None = None  #: its name, for the reward "verifier"
    choice: Aggregation = Aggregation.WEIGHTED  #: how the answer is chosen
    #: A weighted vote raises values to this power: `votes.Scale`.
    sharpness: Annotated[float, Field(ge=0)] = 1.0
    #: Of the log of this model's values: `votes.Scale`.
    spread: Annotated[float, Field(gt=0)] = 1.0
    reference: float = 0.0  #: log of a value whose vote counts in full: `votes.Scale`
    early_stop: bool = True  #: stop when the vote can no longer change
    #: With `early_stop`: also stop if the leader is ahead with this probability; None: don't.
    stop: Annotated[float, Field(gt=0.5, lt=1)] | None = None
    #: With `early_stop`: also stop after this many rollouts without a new answer; None: don't.
    patience: Count | None = None
    reflection: ReflectionPolicy = ReflectionPolicy.NEVER  #: when a finished thought reconsiders
    max_reflections: Count = 1  #: maximum reflections on one path
    turn: TurnFormat = MARCO_O1  #: how the model writes thoughts and answers
    profile: str = ""  #: name and hash of the profile it was made from; not read by the search

    def __post_init__(self) -> None:
        """Raises SearchError for unknown names."""
        for what, name, known in (
            ("action", self.action, ACTIONS), ("reward", self.reward, REWARDS),
        ):  # fmt: skip
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

    @property
    def scale(self) -> Scale:
        """The weights of values in a vote."""
        return Scale(sharpness=self.sharpness, spread=self.spread, reference=self.reference)

    def temperature_of(
        self, branch_id: int, forced: int | None, reflect: ReflectionPlacement
    ) -> float:
        """The temperature that a branch is sampled at; 0 is greedy."""
        if self.selection is not Selection.BEST_FIRST:
            return self.temperature
        if forced is not None:
            return 0.0
        first = not branch_id or reflect is ReflectionPlacement.FIRST
        own = self.first_temperature if first else None
        return self.temperature if own is None else own

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` gives the same configuration back."""
        return {k: str(v) if isinstance(v, StrEnum) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> SearchConfig:
        """The configuration written by `to_json`, in which choices are given by name.

        Fields of earlier versions that no longer exist are ignored (see `gone_from`). Raises
        SearchError for unknown fields and invalid values.
        """
        known = {k: v for k, v in data.items() if k not in _GONE and k != "value"}
        if unknown := sorted(known.keys() - {field.name for field in fields(cls)}):
            raise SearchError(f"unknown fields of a search: {', '.join(unknown)}")
        known["reward"] = reward_of(data)
        try:
            return config_adapter().validate_python(known)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise SearchError(f"{place}: {first['msg']}, not {first['input']!r:.60}") from None


@lru_cache
def config_adapter() -> TypeAdapter[SearchConfig]:
    """Checks the fields of a SearchConfig."""
    return TypeAdapter(SearchConfig)


_GONE: dict[str, Any] = {
    "temperature_decay": 1.0,
    "normalise": True,
    "virtual_loss": 1.0,
    "widening": 0.0,
    "reuse": True,
    "backup": "mean",
    "lead": None,
    "reflection_width": None,
    "reflect_first": False,
    "fork_temperature": 0.0,
    "fork_share": 0.02,
    "fresh_prior": 0.03,
}
"""Fields of earlier versions, each with the value that equals today's behaviour."""


def gone_from(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields of a stored configuration that this version does not support."""
    return tuple(name for name, usual in _GONE.items() if config.get(name, usual) != usual)


DEFAULT_STRATEGY = "auto"
AUTO = "tree"
WIDEST = 32
"""Independent samples requested at once. A crash loses at most these."""

_FLAT: dict[str, Any] = {"action": Action.WHOLE}
_BEST_FIRST: dict[str, Any] = {
    "selection": Selection.BEST_FIRST,
    "parallel": 4,
    "first_temperature": 0.0,
    "reflection": ReflectionPolicy.BRANCH,
    "reward": "weakest-line",
    "sharpness": 2.0,
    "stop": 0.65,
}
_GREEDY: dict[str, Any] = {"rollouts": 1, "temperature": 0.0, "early_stop": False}

_NAMED: dict[str, dict[str, Any]] = {
    "tree": _BEST_FIRST | {"action": Action.SPAN},
    "adaptive": _BEST_FIRST | {"action": Action.WHOLE},
    "cot": _FLAT | _GREEDY | {"choice": Aggregation.BEST},
    "vote": _FLAT | {"choice": Aggregation.VOTE},
    "best-of-n": _FLAT | {"choice": Aggregation.BEST, "early_stop": False},
    "step": {"action": Action.STEP},
    "mini-step-64": {"action": Action.MINI_STEP, "mini_step_tokens": 64},
    "mini-step-32": {"action": Action.MINI_STEP, "mini_step_tokens": 32},
    "mini-step-16": {"action": Action.MINI_STEP, "mini_step_tokens": 16},
    "mini-step-8": {"action": Action.MINI_STEP, "mini_step_tokens": 8},
}
STRATEGIES = {DEFAULT_STRATEGY: _NAMED[AUTO]} | _NAMED
"""Strategy to its defaults. The names of `SearchOptions.strategy` and the help texts follow."""


def configure(strategy: str, **overrides: Any) -> SearchConfig:
    """The configuration of a strategy with some fields overridden; None means default.

    "auto" stands for another strategy, whose name the configuration gets.
    Choices (`selection`, `reflection`, ...) may be given by name.
    "cot" is one rollout whatever the budget. Samples that do not depend on each other are
    requested together, up to WIDEST at once, unless `parallel` is given. Raises SearchError for
    an unknown strategy, naming the known ones.
    """
    if strategy not in STRATEGIES:
        known = ", ".join(STRATEGIES)
        raise SearchError(f"unknown strategy {strategy!r}; use one of {known}")
    strategy = AUTO if strategy == DEFAULT_STRATEGY else strategy
    given = {k: v for k, v in overrides.items() if v is not None}
    if strategy == "cot":
        given.pop("rollouts", None)
    if "verifier" in given:
        given["reward"] = VERIFIER
    config = SearchConfig.from_json({"strategy": strategy} | STRATEGIES[strategy] | given)
    # Nothing is decided between rounds, so their number does not change the answer.
    independent = (
        not config.action_kind.branches_inside
        and config.reflection is ReflectionPolicy.NEVER
        and config.selection is not Selection.BEST_FIRST
        and config.verifier is None
        and (not config.early_stop or config.choice is Aggregation.BEST)
        and config.max_tokens is None
        and config.max_seconds is None
    )
    if independent and "parallel" not in given:
        return replace(config, parallel=max(config.parallel, min(config.rollouts, WIDEST)))
    return config
