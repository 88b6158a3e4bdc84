"""The runs behind the paper's table in miniature, and where their traces are kept.

A run gives a strategy's figures at every smaller budget too, and independent samples serve
majority vote, best of n and weighted vote alike, so few runs are needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from marco_search.evaluation.run import Recipe
from marco_search.jobs import SearchOptions

SETS = {"en": "heldout_en", "zh": "heldout_zh"}
PROBLEMS = 250
ROLLOUTS = 32
"""Of each run; fewer where time is short, and then there is no Test@32."""
FEW = 8
"""Of samples that all reflect: each costs as much as two or three others."""
SEED = 20260
"""Seed of every search; other than any used while the search was being chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run over each set."""

    name: str  # of its file
    options: Mapping[str, Any]
    changes: Mapping[str, Any] = field(default_factory=dict)

    def recipe(self, *, keep_tokens: bool = False) -> Recipe:
        """How its problems are searched."""
        options = SearchOptions(seed=SEED, **self.options)
        return Recipe(options=options, changes=dict(self.changes), keep_tokens=keep_tokens)

    def file(self, folder: Path, language: str) -> Path:
        """Where its traces are kept."""
        return folder / language / f"{self.name}.jsonl"


def _whole(strategy: str, rollouts: int, **options: Any) -> dict[str, Any]:
    """Options of a run that does not stop before its rollouts are spent."""
    return {"strategy": strategy, "rollouts": rollouts, "early_stop": False, **options}


def runs(rollouts: int = ROLLOUTS) -> dict[str, Run]:
    """Run name to run, in the order in which they are made. "auto" stops by itself."""
    few = min(rollouts, FEW)
    return {
        name: Run(name=name, options=options)
        for name, options in {
            "cot": {"strategy": "cot"},
            "cot-reflect": {"strategy": "cot", "reflection": "always"},
            "auto": {"strategy": "auto"},
            "samples": _whole("vote", rollouts),
            "step": _whole("step", rollouts),
            "mini-step-64": _whole("mini-step-64", rollouts),
            "mini-step-32": _whole("mini-step-32", rollouts),
            "mini-step-16": _whole("mini-step-16", rollouts),
            "mini-step-8": _whole("mini-step-8", rollouts),
            "samples-reflect": _whole("vote", few, reflection="always"),
            "step-reflect": _whole("step", rollouts, reflection="branch"),
            "mini-step-32-reflect": _whole("mini-step-32", rollouts, reflection="branch"),
            "auto-whole": _whole("auto", rollouts),
        }.items()
    }
