"""Jobs from the command line: from its options, or from a JSON Lines file.

Values are checked by SearchOptions and the job models, so that a bad one is refused in the
same words wherever it comes from.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import click

from marco_search.errors import InputError, InvalidBatch, InvalidJob
from marco_search.jobs import Job, SearchOptions
from marco_search.kinds import KINDS, job_from_json_line, own_fields, parse_job
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


def read_jobs(path: str, options: dict[str, Any] | None = None) -> list[Job]:
    """The jobs in a file, in order; "-" is standard input. Blank lines are skipped.

    `options` fill in what a line's own options leave open. Raises InvalidBatch naming every
    bad line with its number, InputError if the file can't be read or holds no job.
    """
    source = "standard input" if path == "-" else path
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{source}: {error.strerror or error}") from None
    if wrong := _another_format(data):
        raise InputError(f"{source}: {wrong}")
    jobs = parse_lines(data.split(b"\n"), source, options or {})
    if not jobs:
        raise InputError(f"{source}: no job in it; write one JSON object on each line")
    return jobs


def _another_format(data: bytes) -> str | None:
    """What the file is if it is not JSON Lines at all, and what to do; None: it may be."""
    if data.startswith(b"\x1f\x8b"):
        return "compressed by gzip: `gzip -dc FILE | marco submit -`"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16: save the file as UTF-8"
    begin = data.removeprefix(b"\xef\xbb\xbf").lstrip()[:2].rstrip()
    if begin.startswith(b"["):
        return "a JSON array: `jq -c '.[]' FILE | marco submit -` writes an object on each line"
    if begin == b"{" and not data.split(b"\n", 1)[0].rstrip().endswith(b"}"):
        return "an object over several lines: `jq -c . FILE | marco submit -` writes one on each"
    return None


def parse_lines(lines: Iterable[bytes], source: str, options: dict[str, Any]) -> list[Job]:
    """The jobs in these lines. Raises InvalidBatch if any line is wrong."""
    SearchOptions(**options)  # raises InvalidJob once, not for every line
    jobs: list[Job] = []
    errors: list[InvalidJob] = []
    for number, line in enumerate(lines, start=1):
        try:
            if line.strip():
                job = job_from_json_line(line, number)
                filled = SearchOptions(**options | job.options.model_dump(exclude_unset=True))
                jobs.append(job.model_copy(update={"options": filled}))
        except InvalidJob as error:
            errors.append(error)
    if errors:
        raise InvalidBatch(source, errors)
    return jobs
