"""Where output goes: a terminal gets colour and its own width, a pipe gets plain whole lines.

A terminal never gets a control character that came with the data; a pipe or a file gets the
data byte for byte, in UTF-8.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from marco_search.text import escaped

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

PAGE_WIDTH = 100  # cells: of what is laid out for a reader
PIPE_WIDTH = 10_000  # cells: nothing is folded for a reader that is a program

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def console(*, stderr: bool = False) -> Console:
    """A console on standard output (or error). NO_COLOR and TERM=dumb are honoured by rich."""
    from rich.console import Console

    from marco_search.cli.render.escaping import Escaping

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPE_WIDTH
    made = Console(file=stream, width=width, highlight=False, markup=False, emoji=False)
    made.push_render_hook(Escaping())
    return made


def echo(text: str, *, end: str = "\n") -> None:
    """Write to standard output: a terminal sees control characters escaped, others get all."""
    out = sys.stdout
    if out.isatty():
        out.write(escaped(text) + end)
    else:
        out.flush()
        out.buffer.write((text + end).encode("utf-8", "replace"))
        out.buffer.flush()
    out.flush()


def show(*parts: RenderableType) -> None:
    """Print each part to standard output on lines of its own."""
    out = console()
    if not out.is_terminal:
        with out.capture() as captured:
            _print(out, parts)
        # Cells are padded: a pipe does not want the spaces at the ends of lines.
        echo("\n".join(line.rstrip() for line in captured.get().split("\n")).rstrip("\n"))
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
    echo(json.dumps(data, ensure_ascii=False, indent=indent))


def print_json_line(data: Any) -> None:
    """Print `data` as one line of JSON Lines, at once."""
    echo(json.dumps(data, ensure_ascii=False))
