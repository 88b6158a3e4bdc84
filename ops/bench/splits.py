"""Draws word problems that nothing has used before, for the development or the report of a search.

The problems come from the generator of the pocket model's training data: held out from training,
in no shipped set, and, unless the seed is that of the development split, not in that either.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Literal, get_args

from marco_search import pocket
from marco_search.evaluation import data_sets
from ops.pocket.problems import Language, Problem
from ops.pocket.samples import held_out_problems

Kind = Literal["normal", "hard"]
DEVELOPMENT, DEVELOPMENT_PROBLEMS = "dev11", 400
"""Seed of the development split and its size, a language and kind."""
# Of the development split before it, and how many problems of it were looked at.
_FORMER: dict[Language, int] = {"en": 71_001, "zh": 71_002}
_FORMER_PROBLEMS = 600


def draw(seed: str, kind: Kind, language: Language, count: int) -> list[Problem]:
    """The first `count` problems of a split; a larger count goes on from a smaller one.

    Raises ValueError for more of the development split than other splits keep clear of.
    """
    if seed == DEVELOPMENT and count > DEVELOPMENT_PROBLEMS:
        raise ValueError(f"the development split has {DEVELOPMENT_PROBLEMS} problems")
    used = shipped() if seed == DEVELOPMENT else shipped() | used_in_development(language)
    name, hard = f"{seed}/{kind}/{language}", kind == "hard"
    return held_out_problems(language, count, name, hard=hard, without=used)


@cache
def shipped() -> frozenset[str]:
    """The questions of all shipped sets."""
    return frozenset(row["question"] for n in pocket.HELD_OUT_SETS for row in pocket.held_out(n))


@cache
def used_in_development(language: Language) -> frozenset[str]:
    """All questions that were looked at while the search was being designed."""
    problems = held_out_problems(language, _FORMER_PROBLEMS, _FORMER[language])
    for kind in get_args(Kind):
        problems += draw(DEVELOPMENT, kind, language, DEVELOPMENT_PROBLEMS)
    return frozenset(problem.question for problem in problems)


def labelled(problems: Iterable[Problem]) -> list[data_sets.Problem]:
    """These problems as an evaluation takes them."""
    rows = ({"question": p.question, "answer": p.answer} for p in problems)
    return [data_sets.from_row(row, "a split") for row in rows]
