"""Arguments, options and types of values that several commands share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import reduce
from pathlib import Path
from typing import Any
from uuid import UUID

import click

from marco_search.errors import MarcoError

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
JSON = "marco_search.json"
"""Key of a click context's `meta`: whether --json was given."""
_TENANT = "marco_search.tenant"
_ALL_TENANTS = "marco_search.all_tenants"
_BATCH = "marco_search.batch"
FILE = click.Path(dir_okay=False, path_type=Path)
"""A path that is no folder's."""
FOLDER = click.Path(file_okay=False, path_type=Path)
file_option = click.option(
    "-o", "--output", "file", type=FILE, metavar="FILE",
    help="Write to FILE, atomically.",
)  # fmt: skip
question_option = click.option(
    "--question", is_flag=True, help="Include the question, text or prompt."
)
LARGEST_COUNT = 2**31 - 1  # Postgres' integer


def _kept_as(key: str) -> dict[str, Any]:
    """Of an option whose value goes into the context's `meta`, not to the function."""

    def keep(context: click.Context, _: click.Parameter, given: Any) -> Any:
        context.meta[key] = given
        return given

    return {"expose_value": False, "callback": keep}


def together(*options: Decorator) -> Decorator:
    """A decorator that adds all of these options."""
    return lambda function: reduce(lambda made, option: option(made), reversed(options), function)


class JsonCommand(click.Command):
    """A command that takes --json; `output.as_json` says whether it was given."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        given = _kept_as(JSON)
        self.params.append(click.Option(["--json"], is_flag=True, help="Print JSON.", **given))


class _Group(click.Group):
    command_class = JsonCommand


def command(name: str | None = None) -> Callable[[Callable[..., Any]], click.Command]:
    """Makes a function a command that takes --json."""
    return click.command(name, cls=JsonCommand)


def group() -> Callable[[Callable[..., Any]], click.Group]:
    """Makes a function a group of commands that take --json."""
    return click.group(cls=_Group)


jobs_argument = click.argument("jobs", metavar="[JOB]...", nargs=-1)
all_option = click.option("--all", "everything", is_flag=True, help="All jobs of all tenants.")
language_option = click.option(
    "--language", metavar="LANG", help="Which file of a folder, or of MGSM."
)
tenant_option = click.option(
    "--tenant", metavar="NAME", help="All jobs of this tenant; with ids, the tenant of these jobs.",
    callback=_kept_as(_TENANT)["callback"],
)  # fmt: skip


one_tenant = click.option(
    "--tenant", metavar="NAME", help="Jobs of this tenant, not of MARCO_TENANT.",
    **_kept_as(_TENANT),
)  # fmt: skip


tenants = together(
    one_tenant,
    click.option(
        "--all-tenants", is_flag=True, help="Jobs of all tenants.", **_kept_as(_ALL_TENANTS)
    ),
)
"""--tenant and --all-tenants of a command that reads: its `session` has what they say."""


class Moment(click.DateTime):
    """A date or time; UTC unless it says otherwise."""

    def convert(self, value: Any, param: Any, ctx: Any) -> datetime:
        """The time. Fails with examples of what can be given."""
        try:
            found: datetime = super().convert(value, param, ctx)
        except click.BadParameter:
            example = datetime(2026, 11, 28, 9, tzinfo=UTC)
            forms = ", ".join(map(example.strftime, self.formats))
            self.fail(f"{value!r} is not a time; write it like {forms}.", param, ctx)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found


_moment = Moment(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S%z"])


which_jobs = together(
    click.option(
        "--job", "jobs", multiple=True, metavar="JOB", help="Only this job; repeatable."
    ),
    click.option("--batch", type=click.UUID, metavar="ID", help="Only jobs of this batch."),
    tenants,
    click.option("--since", type=_moment, metavar="TIME", help="Submitted at or after, UTC."),
    click.option("--until", type=_moment, metavar="TIME", help="Submitted before, UTC."),
)  # fmt: skip
"""The options of `export.tables.Filter`: jobs, batch, since, until, and `tenants`."""
of_batch = click.option(
    "--batch", type=click.UUID, metavar="ID", help="The jobs of this batch.", **_kept_as(_BATCH)
)
jobs_to_read = together(jobs_argument, tenants, of_batch)
jobs_to_change = together(jobs_argument, tenant_option, all_option, of_batch)


def chosen_batch(jobs: Sequence[str]) -> UUID | None:
    """The batch of `of_batch`, in place of `jobs`. Raises UsageError for both."""
    batch: UUID | None = click.get_current_context().meta.get(_BATCH)
    if batch is not None and jobs:
        raise click.UsageError("Give jobs, or --batch.")
    return batch


def chosen_tenant(default: str) -> str | None:
    """Whose jobs the command sees, `default` if it was not said; None: all tenants'."""
    meta = click.get_current_context().meta
    name, every = meta.get(_TENANT), meta.get(_ALL_TENANTS)
    # An unset variable of a script must not mean all.
    if name == "":
        raise click.UsageError("--tenant is empty: give a name, or --all.")
    if name is not None:
        from producer.handles import check_tenant  # it loads what some commands do not need

        check_tenant(name)
    if name and every:
        raise click.UsageError("--tenant and --all-tenants exclude each other.")
    return None if every else name or default


def confirm(question: str) -> None:
    """Ask before what can't be undone. Raises MarcoError unless the answer is yes."""
    if not click.confirm(question, err=True):
        raise MarcoError("nothing was changed")


def threads_option(help_text: str) -> Decorator:
    """How many searches a process runs at once."""
    return click.option(
        "--threads", type=click.IntRange(1, 512), default=16, metavar="N", help=help_text
    )


def count(least: int = 0) -> click.IntRange:
    """A number of rows or jobs."""
    return click.IntRange(min=least, max=LARGEST_COUNT)


class Finite(click.FloatRange):
    """A finite number: NaN is within every range, and ends no wait."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number. Fails for one that is not finite."""
        number = super().convert(value, param, ctx)
        return number if math.isfinite(number) else self.fail(f"{value!r} is not finite.", param)


class _Pair(click.ParamType[tuple[str, str]]):
    """NAME=VALUE: the name, and the text of the value."""

    name = "pair"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, sign, text = value.partition("=")
        if not sign or not name.strip():
            self.fail(f"{value!r}: write {param and param.metavar}.", param, ctx)
        return name, text


PAIR = _Pair()
Pairs = tuple[tuple[str, str], ...]
