"""The options of a search on the command line, and the job they make.

Values are checked by SearchOptions and the job models, so that a bad one is refused in the
same words wherever it comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, TypeVar

import click

from marco_search.jobs import Job, SearchOptions
from marco_search.kinds import KINDS, own_fields, parse_job
from marco_search.search.config import DEFAULT_STRATEGY, STRATEGIES

Function = TypeVar("Function", bound=Callable[..., Any])


def _together(*options: Callable[[Function], Function]) -> Callable[[Function], Function]:
    """A decorator that adds all of these options."""
    return lambda function: reduce(lambda made, option: option(made), reversed(options), function)


search_options = _together(
    click.option("--strategy", metavar="NAME",
                 help=f"{', '.join(STRATEGIES)} (default {DEFAULT_STRATEGY})."),
    click.option("--rollouts", type=int, metavar="N", help="Rollouts at most (default 16)."),
    click.option("--max-tokens", type=int, metavar="N", help="Generated tokens at most."),
    click.option("--max-seconds", type=float, metavar="S",
                 help="Begin no round after so many seconds of searching."),
    click.option("--max-new-tokens", type=int, metavar="N", help="Tokens of one branch at most."),
    click.option("--temperature", type=float, metavar="T", help="0 is greedy."),
    click.option("--seed", type=int, metavar="N", help="The same seed gives the same tree."),
    click.option("--reflection", metavar="WHEN",
                 help="never, branch or always (default: as the strategy has it)."),
    click.option("--answers", type=int, metavar="N", help="Best distinct answers (default 3)."),
    click.option("--early-stop/--no-early-stop", default=None,
                 help="Stop when the vote can't change any more (default)."),
)  # fmt: skip
_OWN_FIELDS = [
    (name, f"{meaning} ({kind.name}).")
    for kind in KINDS.values()
    for name, meaning in own_fields(kind).items()
]
kind_options = _together(
    click.option("--kind", default="reasoning", show_default=True, metavar="KIND",
                 help=f"{', '.join(KINDS)}."),
    *(click.option(f"--{name.replace('_', '-')}", metavar=name.upper(), help=meaning)
      for name, meaning in _OWN_FIELDS),
    click.option("--expected", metavar="TEXT", help="The right answer, for the report only."),
)  # fmt: skip
KIND_OPTIONS = ("kind", *(name for name, _ in _OWN_FIELDS), "expected")


def given_options(values: dict[str, Any]) -> dict[str, Any]:
    """The fields of SearchOptions that the command line sets."""
    return {n: values[n] for n in SearchOptions.model_fields if values.get(n) is not None}


def job_from_options(text: str, values: dict[str, Any]) -> Job:
    """The job that a text and the command line's options describe.

    Raises InvalidJob naming the field and the reason.
    """
    kind = values["kind"]
    data = {name: values[name] for name in KIND_OPTIONS if values.get(name) is not None}
    data[KINDS[kind].model.subject_field if kind in KINDS else "question"] = text
    if given := given_options(values):
        data["options"] = given
    return parse_job(data)
