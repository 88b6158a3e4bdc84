"""Where output goes: a terminal gets colour and its own width, a pipe gets plain whole lines.

A terminal never gets a control character that came with the data; a pipe or a file gets the
data byte for byte, in UTF-8.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import click
from pydantic_core import to_jsonable_python
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from marco_search.cli.options import JSON
from marco_search.export.files import whole
from marco_search.text import escaped

PAGE_WIDTH = 100  # cells: of what is laid out for a reader
PIPE_WIDTH = 10_000  # cells: nothing is truncated for a reader that is a program


def as_json() -> bool:
    """Whether the command was given --json."""
    return bool(click.get_current_context().meta.get(JSON))


def report(data: Any, *parts: RenderableType) -> None:
    """Print `data` as JSON if the command was given --json, else each part on lines of its own."""
    if as_json():
        print_json(data)
    else:
        show(*parts)


def print_json(data: Any) -> None:
    """Print `data` as one JSON document, indented for a reader at a terminal."""
    echo(_json(data, indent=2 if sys.stdout.isatty() else None))


def print_json_line(data: Any) -> None:
    """Print `data` as one line of JSON Lines, at once."""
    echo(_json(data))


def write_json_lines(file: Path, lines: Iterable[dict[str, Any]]) -> int:
    """Write JSON Lines to a file that appears whole or not at all; how many."""
    count = 0
    with whole(file) as part, part.open("w", encoding="utf-8", errors="replace") as out:
        for line in lines:
            out.write(_json(line) + "\n")
            count += 1
    return count


def _json(data: Any, indent: int | None = None) -> str:
    # Models, dataclasses and ids may be anywhere in it.
    return json.dumps(data, ensure_ascii=False, indent=indent, default=to_jsonable_python)


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
    if out.is_terminal:
        _print(out, parts)
        return
    with out.capture() as captured:
        _print(out, parts)
    # Cells are padded: a pipe does not want the spaces at the ends of lines.
    echo("\n".join(line.rstrip() for line in captured.get().split("\n")).rstrip("\n"))


def note(text: str, style: str = "dim") -> None:
    """Print a remark to standard error."""
    console(stderr=True).print(text, style=style)


def notice(text: str) -> None:
    """Print what a user or a program should know to standard error, with --json as JSON."""
    line = json.dumps({"notice": text}, ensure_ascii=False) if as_json() else f"marco: {text}"
    print(escaped(line), file=sys.stderr, flush=True)


def console(*, stderr: bool = False) -> Console:
    """A console on standard output (or error). TERM=dumb is honoured by rich."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPE_WIDTH
    # With NO_COLOR rich alone would still send bold and dim.
    colours: Literal["auto"] | None = None if os.environ.get("NO_COLOR") else "auto"
    return _EscapingConsole(
        file=stream, width=width, color_system=colours, highlight=False, markup=False, emoji=False
    )


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


def _print(out: Console, parts: Sequence[RenderableType]) -> None:
    for part in parts:
        part = Text(part) if isinstance(part, str) else part
        if isinstance(part, Text):  # its lines have been measured, and a pipe wants them whole
            out.print(part, no_wrap=True, overflow="ignore", crop=False)
        else:
            out.print(part)


class _EscapingConsole(Console):
    """Shows the control characters of the data in everything that it draws."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            # Colours are styles, not text: rich's own controls are marked as such.
            known = segment.control or segment.text.isprintable()
            yield segment if known else Segment(escaped(segment.text), segment.style)
