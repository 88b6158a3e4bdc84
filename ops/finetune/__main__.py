"""`python -m ops.finetune CONFIG.toml`: see `--help`, and docs/finetune.md."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from marco_search.cli.job_input import parse_value
from marco_search.cli.options import PAIR, Pairs
from marco_search.errors import MarcoError
from ops.finetune.config import Config
from ops.finetune.run import finetune, python

_FOLDER = click.Path(path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("config", type=click.Path(path_type=Path), required=False)
@click.option("--model", type=_FOLDER, help="The parent.")
@click.option("--data", type=_FOLDER, multiple=True, help="A data set's folder; several times.")
@click.option("--out", type=_FOLDER, help="Folder of the run.")
@click.option("--seed", type=int)
@click.option("--set", "sets", type=PAIR, metavar="KEY=VALUE", multiple=True,
              help="trainer.max_steps=1, ...")  # fmt: skip
@click.option("--max-seconds", type=float, help="Stop with a checkpoint after so much training.")
@click.option(
    "--evaluate",
    type=click.Choice(["none", "before", "after", "both"]),
    default="both",
    show_default=True,
)
@click.option("--environment", is_flag=True, help="Print the Python that has PyTorch, and end.")
def main(
    config: Path | None,
    sets: Pairs,
    max_seconds: float | None,
    evaluate: str,
    environment: bool,
    **given: Any,
) -> None:
    """Fine-tune a model as CONFIG, a TOML file, says; the options go over it.

    The same command goes on where it stopped. Exits with 75 when --max-seconds are over.
    """
    overrides = {key: value for key, value in given.items() if value not in (None, ())}
    overrides |= {key: parse_value(text) for key, text in sets}
    try:
        if environment:
            click.echo(python())
        elif config is None:
            raise click.UsageError("which CONFIG.toml?")
        else:
            read = Config.read(config, overrides)
            click.echo(finetune(read, max_seconds=max_seconds, evaluate=evaluate))
    except MarcoError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
