"""What the ablation varies: a base, and one thing changed at a time.

AUTO's base is the strategy "auto" as it was before its last change, which came out of this:
its root widened half as fast, and it stopped at a lead of 0.4. PAPER's is Marco-o1's search by
steps with its whole budget, for what "auto", which needs few rollouts, hardly ever uses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from marco_search.evaluation.curves import Point, point, stopped
from marco_search.evaluation.grading import Grader
from marco_search.evaluation.run import Recipe
from marco_search.evaluation.traces import Trace
from marco_search.jobs import SearchOptions

SEED, ROLLOUTS = 5, 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """One base and its variants. Changes are fields of SearchConfig."""

    base: str  # its name
    options: Mapping[str, Any]
    changes: Mapping[str, Any]  # that make the base
    variants: Mapping[str, Mapping[str, Any]]  # name -> changes to the base
    looked_at: str  # where a run is cut to be looked at: at which "lead", or "rollouts"
    cuts: tuple[float, ...]
    cut: Callable[[Sequence[Trace], Grader, float], Point]

    @property
    def names(self) -> list[str]:
        """The base, then the variants."""
        return [self.base, *self.variants]

    def recipe(self, name: str) -> Recipe:
        """How the base or a variant searches."""
        options = SearchOptions(rollouts=ROLLOUTS, seed=SEED, **self.options)
        return Recipe(options=options, changes={**self.changes, **self.variants.get(name, {})})

    def label(self, cut: float) -> str:
        """A cut's name, such as "lead 0.4"."""
        return f"{self.looked_at} {cut:g}"


def _first(traces: Sequence[Trace], grader: Grader, rollouts: float) -> Point:
    return point(traces, grader, int(rollouts))


AUTO = Study(
    base="base",
    options={},
    # A run with the greater lead can be cut at any smaller one.
    changes={"widening": 0.5, "lead": 0.8},
    looked_at="lead",
    cuts=(0.4, 0.8),
    cut=stopped,
    variants={
        # Reflection
        "never reflects": {"reflection": "never"},
        "reflects up to twice": {"max_reflections": 2},
        "four redos": {"reflection_width": 4},
        "steps before a reflection too": {"reflect_first": False},
        # Sampling
        "no greedy samples": {"first_temperature": None},
        "temperature 0.7": {"temperature": 0.7},
        "temperature 1.3": {"temperature": 1.3},
        "temperature falls by a tenth a step": {"temperature_decay": 0.9},
        # Widening
        "root widens half as fast": {"widening": 0.25},
        "root widens twice as fast": {"widening": 1.0},
        "root of four at once": {"root_width": 4},
        "width 1": {"width": 1},
        "width 4": {"width": 4},
        # Selection
        "exploration 0.1": {"exploration": 0.1},
        "exploration 2": {"exploration": 2.0},
        "PUCT": {"selection": "puct"},
        "WU-UCT, four at a time": {"virtual_loss": 0.0, "parallel": 4},
        "four at a time": {"parallel": 4},
        "values not normalised": {"normalise": False},
        "backup of the greatest value": {"backup": "max"},
        "backup half mean, half greatest": {"backup": "mixed"},
        "value of the rollout only": {"value": "rollout"},
        # Actions
        "rollouts are not reused": {"reuse": False},
        "whole thoughts": {"action": "whole"},
        "mini-step 32": {"action": "mini_step", "mini_step_tokens": 32},
        "mini-step 16": {"action": "mini_step", "mini_step_tokens": 16},
    },
)
PAPER = Study(
    base="step",
    options={"strategy": "step", "early_stop": False},
    changes={},
    looked_at="rollouts",
    cuts=(8, 16),
    cut=_first,
    variants={
        "step, rollouts are not reused": {"reuse": False},
        "step, temperature falls by a tenth a step": {"temperature_decay": 0.9},
        "step, temperature falls by a quarter a step": {"temperature_decay": 0.75},
        "step, one branch a fork": {"branching": 1},
        "step, PUCT": {"selection": "puct"},
    },
)
STUDIES = (AUTO, PAPER)


def study_of(name: str) -> Study:
    """The study that a variant belongs to."""
    return next(study for study in STUDIES if name in study.names)
