"""`marco profile`: what is known of families of models."""

from __future__ import annotations

import click

from marco_search import profiles
from marco_search import settings as settings_module
from marco_search.cli import output
from marco_search.cli.options import command


@click.group()
def profile() -> None:
    """Profiles: format, prompts and defaults of a family of models (docs/profiles.md).

    Those of your own are read from the folder `profiles` under MARCO_HOME, or by path.
    """


@command("list")
@click.option("--model", metavar="NAME", help="Mark the one that is taken for this model.")
def list_(model: str | None) -> None:
    """List the profiles, those of your own first, and the model names they are for."""
    folder = settings_module.load().profiles
    taken = None if model is None else profiles.chosen(model, folder).name
    known = [profiles.read(file) for file in profiles.files(folder).values()]
    lines = [
        f"{'* ' if p.name == taken else ''}{p.name}  {', '.join(p.models) or 'any other model'}"
        for p in known
    ]
    data = [{"name": p.name, "models": p.models, "label": p.label} for p in known]
    output.report({"profiles": data, "chosen": taken}, "\n".join(lines))


@command()
@click.argument("name")
def show(name: str) -> None:
    """Print the profile NAME (or of a file) with all its fields, as a file to change.

    \b
    marco profile show qwen2 > .marco/profiles/mine.toml
    """
    found = profiles.load(name, settings_module.load().profiles)
    data = found.model_dump(mode="json") | {"label": found.label}
    output.report(data, profiles.dumps(found).rstrip())


profile.add_command(list_)
profile.add_command(show)
