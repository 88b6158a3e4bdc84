"""Jobs from the command line: from its options, or from a JSON Lines file.

Values are checked by SearchOptions and the job models, so that a bad one is refused in the
same words wherever it comes from.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from io import BufferedReader
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from marco_search import profiles
from marco_search.cli.options import PAIR, Decorator, together
from marco_search.errors import InputError, InvalidBatch, InvalidJob
from marco_search.jobs import Job, SearchOptions
from marco_search.jobs.validation import another_format
from marco_search.kinds import KINDS, own_fields, parse_job, strict_json

profile_options = together(
    click.option("--profile", metavar="NAME|FILE",
                 help="The model's profile (default: by its name); `marco profile list`."),
    click.option("--set", "assignments", type=PAIR, multiple=True, metavar="FIELD=VALUE",
                 help="Set a field of the profile or the search, such as top_p=0.9; repeatable."),
    click.option("--system-prompt", metavar="TEXT", help="Used for jobs that have none."),
    click.option("--examples", metavar="FILE",
                 help="Solved examples before each question: a SET of marco eval with answers."),
)  # fmt: skip


def _search_option(name: str, field: FieldInfo) -> Decorator:
    """The option for a field of SearchOptions; its value is checked there."""
    flag, kinds = f"--{name.replace('_', '-')}", (field.annotation, *get_args(field.annotation))
    text = str(field.description).replace("; None:", ". Default:").replace(" None:", " Default:")
    if bool in kinds:
        return click.option(f"{flag}/--no{flag[1:]}", default=None, help=f"{text} (default).")
    text += "." if field.default is None else f" (default {field.default})."
    kind, metavar = next((k for k in ((int, "N"), (float, "X")) if k[0] in kinds), (str, "NAME"))
    return click.option(flag, type=kind, metavar=metavar, help=text)


search_options = together(
    *(_search_option(name, field) for name, field in SearchOptions.model_fields.items()
      if name not in ("profile", "overrides")),
    profile_options,
)  # fmt: skip
_TAKEN = {*SearchOptions.model_fields, "kind", "question", "wait", "tree", "thought", "json"}
"""Options of the commands: a field of a kind with such a name is set in a file only."""


def own_options() -> dict[str, str]:
    """The options for fields of kinds, each with its help; kinds may share one."""
    found: dict[str, list[str]] = {}
    for kind in KINDS.values():
        for name, meaning in own_fields(kind).items():
            if name not in _TAKEN:
                found.setdefault(name, []).append(f"{meaning} ({kind.name}).")
    return {name: " ".join(meanings) for name, meanings in found.items()}


_OWN_OPTIONS = own_options()
kind_options = together(
    click.option("--kind", default="reasoning", metavar="KIND", help=f"{', '.join(KINDS)}."),
    *(click.option(f"--{name.replace('_', '-')}", metavar=name.upper(), help=meaning)
      for name, meaning in _OWN_OPTIONS.items()),
    click.option("--expected", metavar="TEXT", help="The right answer, for the report only."),
)  # fmt: skip
KIND_OPTIONS = ("kind", *_OWN_OPTIONS, "expected")


def given_options(values: dict[str, Any]) -> dict[str, Any]:
    """The fields of SearchOptions that the command line sets.

    A profile in a file goes along as overrides of the neutral one: workers need not have it.
    Raises InvalidProfile or InputError for a file that can't be used.
    """
    given = {n: values[n] for n in SearchOptions.model_fields if values.get(n) is not None}
    overrides: dict[str, Any] = {}
    if (profile := given.get("profile")) and profiles.is_path(profile):
        read = profiles.read(Path(profile))
        overrides = read.model_dump(mode="json", exclude_unset=True, exclude={"models"})
        given["profile"] = profiles.NEUTRAL
    overrides |= {
        n.strip(): parse_value(text.strip()) for n, text in values.get("assignments") or ()
    }
    if values.get("system_prompt") is not None:
        overrides["system_prompt"] = values["system_prompt"]
    if values.get("examples") is not None:
        overrides["examples"] = _examples(values["examples"])
    return given | ({"overrides": overrides} if overrides else {})


def parse_value(text: str) -> Any:
    """The value of FIELD=VALUE: as TOML has it, or else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # of tomllib, also for numbers and nesting
        return text


def _examples(file: str) -> list[dict[str, str]]:
    """The solved questions of a file, as a profile has them."""
    from marco_search.evaluation import data_sets  # loads what most commands do not need

    examples = []
    for place, row in data_sets.rows(file):
        question, answer = row.get("question"), row.get("answer")
        if not all(isinstance(text, str | int | float) for text in (question, answer)):
            raise InputError(f"{place}: needs an object with question and answer")
        examples.append({"user": str(question), "assistant": str(answer)})
    return examples


def job_from_options(text: str, values: dict[str, Any]) -> Job:
    """The job that a text and the command line's options describe.

    Raises InvalidJob naming the field and the reason.
    """
    kind = KINDS.get(values["kind"])
    own = own_fields(kind).keys() - _TAKEN if kind else set()
    data = {name: values[name] for name in {*KIND_OPTIONS, *own} if values.get(name) is not None}
    if kind:
        fields = kind.model.model_fields
        data |= {name: _own_value(fields[name], data[name]) for name in own & data.keys()}
    data[kind.model.subject_field if kind else "question"] = text
    if given := given_options(values):
        data["options"] = given
    return parse_job(data)


def _own_value(field: FieldInfo, text: str) -> Any:
    """The value of an option for a kind's own field: JSON, unless the field takes text."""
    if _takes_text(field.annotation):
        return text
    try:
        return strict_json(text)
    except (InvalidJob, ValueError, RecursionError):
        return text


def _takes_text(annotation: Any) -> bool:
    if isinstance(annotation, type):
        return issubclass(annotation, str)
    parts = get_args(annotation)
    if get_origin(annotation) is Literal:
        return any(isinstance(part, str) for part in parts)
    return get_origin(annotation) in (Annotated, Union, UnionType) and any(map(_takes_text, parts))


def read_lines(path: str, options: dict[str, Any] | None = None) -> dict[int, Job]:
    """The jobs in a file by line, in order; "-" is standard input. Blank lines are skipped.

    `options` fill in what a line's own options leave open. Raises InvalidBatch naming every
    bad line with its number, InputError if the file can't be read or holds no job.
    """
    with opened(path, "marco submit") as lines:
        jobs = dict(checked(lines, source_of(path), options or {}))
    if not jobs:
        raise InputError(f"{source_of(path)}: no job in it; write one JSON object on each line")
    return jobs


def source_of(path: str) -> str:
    """How messages name a file of jobs."""
    return "standard input" if path == "-" else path


@contextmanager
def opened(path: str, command: str) -> Iterator[Iterator[bytes]]:
    """The lines of a file of jobs for this command; "-" is standard input.

    Raises InputError if it can't be read, or begins as no JSON Lines file does.
    """
    from producer.uploads import lines_of

    with ExitStack() as stack:
        file = cast("BufferedReader", sys.stdin.buffer)
        if path != "-":
            try:
                file = stack.enter_context(Path(path).open("rb"))
            except OSError as error:
                reason = error.strerror or str(error)
                if " " in path and command == "marco submit":
                    reason += "; a question goes after --question"
                raise InputError(f"{path}: {reason}") from None
        if (found := another_format(file.peek())) is not None:
            name, convert = found
            advice = (
                f"`{convert} FILE | {command} -`" if convert else "write a JSON object on each line"
            )
            raise InputError(f"{source_of(path)}: {name}: {advice}")
        yield lines_of(iter(partial(file.read1, 2**16), b""))


def checked(
    lines: Iterable[bytes], source: str, options: dict[str, Any]
) -> Iterator[tuple[int, Job]]:
    """The jobs in these lines with their numbers. Raises InvalidBatch after all if any is wrong."""
    from producer.uploads import job_in

    SearchOptions(**options)  # raises InvalidJob once, not for every line
    errors: list[InvalidJob] = []
    for number, line in enumerate(lines, start=1):
        try:
            job = job_in(line, number, options)
        except InvalidJob as error:
            errors.append(error)
        else:
            if job is not None:
                yield number, job
    if errors:
        raise InvalidBatch(source, errors)
