"""The knobs of one search, as one frozen value that the audit trail can store.

Two searches with equal `SearchConfig`, prompt and model grow the same tree.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from marco_search.errors import SearchError


class Action(StrEnum):
    """What one edge of the tree stands for."""

    ROOT = "root"
    STEP = "step"  # one line of the thought
    MINI_STEP = "mini_step"  # a fixed number of tokens of the thought
    WHOLE = "whole"  # a whole thought
    REFLECTION = "reflection"  # the reflection phrase, put in by the search
    ANSWER = "answer"  # from the end of the thought to the end of the output


class Reflection(StrEnum):
    """When a finished thought is made to reconsider (Marco-o1, section 5)."""

    NEVER = "never"
    BRANCH = "branch"  # closing the thought and reflecting are both tried
    ALWAYS = "always"  # no thought closes before it has reflected


class Selection(StrEnum):
    """The rule that picks a child on the way down."""

    UCT = "uct"
    PUCT = "puct"


class Backup(StrEnum):
    """What a node's quality Q is, from the values of the rollouts through it."""

    MEAN = "mean"  # as in Marco-o1
    MAX = "max"
    MIXED = "mixed"  # the mean of the two


class Value(StrEnum):
    """Which tokens' confidences make a rollout's value."""

    PATH = "path"  # all generated tokens from the root, or the last reflection, to the leaf
    ROLLOUT = "rollout"  # only those generated in this rollout (the paper's text)


class Choice(StrEnum):
    """How the answer is chosen among the rollouts."""

    VOTE = "vote"  # one rollout, one vote (self-consistency)
    WEIGHTED = "weighted"  # a rollout's vote weighs its path's confidence
    BEST = "best"  # the single most confident rollout


_COUNTS = (
    "mini_step_tokens",
    "rollouts",
    "max_new_tokens",
    "branching",
    "width",
    "root_width",
    "answer_width",
    "parallel",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig:
    """All that decides how a search runs. Tokens are generated tokens unless said otherwise."""

    strategy: str  # the name it was made from; not read by the search
    action: Action  # STEP, MINI_STEP or WHOLE
    mini_step_tokens: int = 64  # length of a mini-step
    # Budgets
    rollouts: int = 16
    max_tokens: int | None = None  # over the whole search
    max_seconds: float | None = None  # no new round starts after this
    max_new_tokens: int = 1024  # of one branch
    # Sampling
    temperature: float = 1.0
    temperature_decay: float = 1.0  # factor for each edge from the root to where a branch forks
    # Of the first sample at the root and after each reflection; None: as all others. 0 is greedy.
    first_temperature: float | None = None
    top_p: float = 1.0
    seed: int = 0
    # Tree
    selection: Selection = Selection.UCT
    exploration: float = 0.5  # c, over values normalised to [0, 1] when `normalise`
    normalise: bool = True  # scale values by the least and greatest seen in this tree
    virtual_loss: float = 1.0  # lost visits per branch in flight; 0 counts them as visits only
    branching: int = 2  # k of a fork below the root
    width: int = 3  # samples drawn at an inner node
    root_width: int = 4  # samples drawn at the root (WHOLE draws all there, see Frontier)
    widening: float = 0.0  # share of the visits that may be fresh samples at the root as well
    answer_width: int = 1  # samples drawn where a thought ends
    reuse: bool = True  # False: of a rollout only the first node is sampled again
    parallel: int = 8  # most branches in flight
    value: Value = Value.PATH
    backup: Backup = Backup.MEAN
    choice: Choice = Choice.WEIGHTED
    sharpness: float = 1.0  # a weighted vote weighs a path's confidence to this power
    early_stop: bool = True  # stop when the vote can't change any more
    lead: float | None = None  # with early_stop: also stop when the vote is led by this weight
    # Reflection
    reflection: Reflection = Reflection.NEVER
    max_reflections: int = 1  # on one path
    reflection_width: int | None = None  # samples drawn after a reflection; None: width, or 1
    reflect_first: bool = False  # BRANCH: steps before a reflection are not sampled again

    def __post_init__(self) -> None:
        """Raises SearchError for a value that no search can run with."""
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise SearchError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.action not in (Action.STEP, Action.MINI_STEP, Action.WHOLE):
            raise SearchError(f"action {self.action} can't be chosen; use step, mini_step or whole")
        if self.reflection_width is not None and self.reflection_width < 1:
            raise SearchError(f"reflection_width must be at least 1, not {self.reflection_width}")
        if self.first_temperature is not None and self.first_temperature < 0:
            raise SearchError(f"first_temperature must not be below 0: {self.first_temperature}")
        if not 0.0 < self.temperature_decay <= 1.0:
            raise SearchError(
                f"temperature_decay must be above 0 and at most 1, not {self.temperature_decay}"
            )
        if not 0.0 <= self.widening <= 1.0:
            raise SearchError(f"widening must be from 0 to 1, not {self.widening}")
        if self.sharpness < 0:
            raise SearchError(f"sharpness must be at least 0, not {self.sharpness}")
        if self.lead is not None and self.lead <= 0:
            raise SearchError(f"lead must be more than 0, not {self.lead}")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise SearchError(f"max_tokens must be at least 1, not {self.max_tokens}")

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` gives the same configuration back."""
        return {k: str(v) if isinstance(v, StrEnum) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> SearchConfig:
        """The configuration written by `to_json`."""
        kinds: dict[str, type[StrEnum]] = {
            "action": Action,
            "selection": Selection,
            "value": Value,
            "backup": Backup,
            "choice": Choice,
            "reflection": Reflection,
        }
        values: dict[str, Any] = {k: kinds[k](v) if k in kinds else v for k, v in data.items()}
        return cls(**values)
