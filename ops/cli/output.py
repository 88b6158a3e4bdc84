"""Where output goes: a terminal gets colour and its own width, a pipe gets plain whole lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

PAGE_WIDTH = 100  # cells: of what is laid out for a reader
PIPE_WIDTH = 10_000  # cells: nothing is folded for a reader that is a program

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def console(*, stderr: bool = False) -> Console:
    """A console on standard output (or error). NO_COLOR and TERM=dumb are honoured by rich."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def show(*parts: RenderableType) -> None:
    """Print each part to standard output on lines of its own."""
    out = console()
    if not out.is_terminal:
        with out.capture() as captured:
            _print(out, parts)
        # Cells are padded: a pipe does not want the spaces at the ends of lines.
        click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))
    else:
        _print(out, parts)


def _print(out: Console, parts: Sequence[RenderableType]) -> None:
    from rich.text import Text

    for part in parts:
        if isinstance(part, Text):  # its lines have been measured, and a pipe wants them whole
            out.print(part, no_wrap=True, overflow="ignore", crop=False)
        else:
            out.print(part)


def terminal_width() -> int:
    """Cells of a line: the terminal's, or a page's where there is none."""
    return console().width if sys.stdout.isatty() else PAGE_WIDTH


def ascii_only() -> bool:
    """True if standard output can't show box drawing characters."""
    try:
        "├─└│".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return True
    return False


def print_json(data: Any) -> None:
    """Print `data` as one JSON document, indented for a reader at a terminal."""
    indent = 2 if sys.stdout.isatty() else None
    click.echo(json.dumps(data, ensure_ascii=False, indent=indent))


def print_json_line(data: Any) -> None:
    """Print `data` as one line of JSON Lines, at once."""
    click.echo(json.dumps(data, ensure_ascii=False))
