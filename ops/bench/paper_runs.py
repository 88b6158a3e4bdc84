"""The runs behind the paper's table in miniature, and where their traces are kept.

One run of 32 rollouts gives a strategy's figures at every smaller budget, and independent
samples serve majority vote, best of n and weighted vote alike, so few runs are needed.
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


_WHOLE = {"rollouts": ROLLOUTS, "early_stop": False}

RUNS: dict[str, Run] = {
    run.name: run
    for run in (
        Run(name="cot", options={"strategy": "cot"}),
        Run(name="cot-reflect", options={"strategy": "cot", "reflection": "always"}),
        Run(name="samples", options={"strategy": "vote"} | _WHOLE),
        Run(name="samples-reflect", options={"strategy": "vote", "reflection": "always"} | _WHOLE),
        Run(name="auto", options={"strategy": "auto", "rollouts": ROLLOUTS}),
        *(
            Run(name=strategy, options={"strategy": strategy} | _WHOLE)
            for strategy in ("step", "mini-step-64", "mini-step-32", "mini-step-16", "mini-step-8")
        ),
        *(
            Run(name=f"{s}-reflect", options={"strategy": s, "reflection": "branch"} | _WHOLE)
            for s in ("step", "mini-step-32")
        ),
    )
}
"""Run name to run, in the order in which they are made."""
