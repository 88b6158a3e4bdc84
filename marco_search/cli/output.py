"""Output: a terminal gets colour, tables and its own width, a pipe gets plain whole lines.

A terminal never gets a control character from the data; a pipe or a file gets the data byte for
byte, in UTF-8. Texts are never parsed as markup, since a model may have written them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click
from pydantic_core import to_jsonable_python
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.constrain import Constrain
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from marco_search import files
from marco_search.cli.options import JSON
from marco_search.render.layout import cut
from marco_search.text import escaped

JOBS_NOT_DONE, DOES_NOT_FIT, OTHER_ENGINE = 7, 9, 10
"""Exit codes of commands that did what they were asked for."""
PAGE_WIDTH = 100  # cells: of what is laid out for a reader
PIPE_WIDTH = 10_000  # cells: nothing is truncated for a reader that is a program
_BETWEEN = 2  # cells between two columns
_STYLES = {
    "yes": "green",
    "succeeded": "green",
    "no": "red",
    "failed": "red",
    "dead": "red",
    "cancelled": "yellow",
    "expired": "yellow",
    "running": "cyan",
}


def as_json() -> bool:
    """Whether the command was given --json."""
    return bool(click.get_current_context().meta.get(JSON))


def report(
    data: Any, *parts: RenderableType, remark: str = "", notices: Iterable[str] = ()
) -> None:
    """Print `data` as JSON if the command was given --json, else each part on lines of its own.

    Then, not with --json, to standard error: a remark, and notices.
    """
    if as_json():
        print_json(data)
        return
    show(*parts)
    if remark:
        note(remark)
    notice(*notices)


def report_table(data: Any, columns: Sequence[Column], found: Sequence[Any], none: str) -> None:
    """`report` data or a table of what was found; `none` says that there is nothing."""
    report(data, text_table(columns, found, width=terminal_width()) if found else none)


def rendered(template: str, **values: Any) -> str:
    """A template beside this module, rendered with these values."""
    import jinja2  # most commands do not need it

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    made = jinja2.Environment(loader=loader, trim_blocks=True, lstrip_blocks=True)
    return made.get_template(template).render(values).rstrip()


def print_json(data: Any) -> None:
    """Print `data` as one JSON document, indented for a reader at a terminal."""
    echo(_json(data, indent=2 if sys.stdout.isatty() else None))


def print_json_line(data: Any) -> None:
    """Print `data` as one line of JSON Lines, at once."""
    echo(_json(data))


def print_or_write(file: Path | None, lines: Iterable[dict[str, Any]]) -> None:
    """Print JSON Lines, or write them to a file and print how many there were as a remark."""
    if file is not None:
        note(f"{file}: {write_json_lines(file, lines):,} lines.")
        return
    for line in lines:
        print_json_line(line)


def write_json_lines(file: Path, lines: Iterable[Any]) -> int:
    """Write JSON Lines to a file that appears whole or not at all; the number of lines."""
    return files.write_lines(file, map(_json, lines))


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


def notice(*texts: str) -> None:
    """Print a notice to standard error, with --json as JSON."""
    for text in texts:
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


@dataclass(frozen=True, slots=True)
class Column:
    """A column's heading, the text of an item's cell, and how the cells are laid out.

    Where a line is too narrow, columns with a `drop` are left out: those that are empty first,
    then the lowest number first. The flexible columns share what is left of the line, each at
    least `least` cells of it, and end in an ellipsis: after the table's `lines` if they wrap.
    """

    heading: str
    cell: Callable[[Any], str]
    justify: Literal["left", "right"] = "left"
    flexible: bool = False
    least: int = 8
    wraps: bool = False
    drop: int | None = None


def number(heading: str, cell: Callable[[Any], str], *, drop: int | None = None) -> Column:
    """A column of numbers."""
    return Column(heading, cell, "right", drop=drop)


def text_table(
    columns: Sequence[Column],
    items: Iterable[Any],
    *,
    width: int | None = None,
    footer: Mapping[str, str] | None = None,
    lines: int = 3,
) -> RenderableType:
    """A row for each item, below the headings and, if given, a last line set off.

    `width` is in terminal cells; None: as wide as it takes. `footer` is by heading.
    """
    rows = [[column.cell(item) for column in columns] for item in items]
    last = [(footer or {}).get(column.heading, "") for column in columns]
    widths = _widths(columns, rows, last, width)
    # A cell of padding to the right; the box adds another.
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.header_style = "dim"
    for i, cells in widths.items():
        table.add_column(_cell(columns[i].heading), justify=columns[i].justify, width=cells)
    for row in rows:
        texts = {i: _folded(row[i], w, lines * columns[i].wraps) for i, w in widths.items()}
        table.add_row(*(_cell(text, _STYLES.get(row[i], "")) for i, text in texts.items()))
    if footer:
        table.add_section()
        table.add_row(*(_cell(last[i], "bold") for i in widths))
    return table if width is None else Constrain(table, width)


def natural_widths(columns: Sequence[Column], items: Sequence[Any]) -> list[int]:
    """The cells that each column takes if nothing is cut."""
    return [max(map(cell_len, (c.heading, *map(c.cell, items)))) for c in columns]


def _widths(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    last: Sequence[str],
    width: int | None,
) -> dict[int, int]:
    """The cells of each column that there is room for, by its index."""
    most = {
        i: max(map(cell_len, (column.heading, last[i], *(row[i] for row in rows))))
        for i, column in enumerate(columns)
    }
    if width is None:
        return most
    kept = {i: min(most[i], c.least) if c.flexible else most[i] for i, c in enumerate(columns)}
    empty = {i: not any(row[i] for row in rows) for i in kept}
    order = {i: (not empty[i], c.drop) for i, c in enumerate(columns) if c.drop is not None}
    droppable = sorted(order, key=lambda i: order[i], reverse=True)
    room = width + _BETWEEN  # nothing comes after the last
    while droppable and sum(kept.values()) + _BETWEEN * len(kept) > room:
        del kept[droppable.pop()]
    spare = room - sum(kept.values()) - _BETWEEN * len(kept)
    while spare > 0 and (narrow := [i for i in kept if kept[i] < most[i]]):
        kept[min(narrow, key=lambda i: kept[i])] += 1
        spare -= 1
    return kept


def _folded(text: str, width: int, lines: int) -> str:
    """`text` in so many lines of `width` cells at most; 0: on one, cut."""
    if cell_len(text) <= width or lines < 2:
        return cut(text, width)
    parts = wrap_cells(text, width)
    if len(parts) > lines:
        parts[lines - 1 :] = [cut(" ".join(parts[lines - 1 :]), width)]
    return "\n".join(parts)


def _cell(text: str, style: str = "") -> Text:
    # Its lines have been measured; where even those do not fit, what is seen ends in an ellipsis.
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def wrap_cells(text: str, width: int) -> list[str]:
    """`text` as lines of at most `width` cells; breaks at spaces where a line has one."""
    return [line.plain.rstrip() for line in Text(text).wrap(Console(), width)] or [""]
