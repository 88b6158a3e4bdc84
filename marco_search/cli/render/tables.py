"""Tables, from rows of text. No markup is read from a cell: a model may have written it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from marco_search.cli.render.text import fold

T = TypeVar("T")

_BETWEEN = 2  # cells between two columns
_PADDING = (0, 1, 0, 0)  # a cell to the right; the box adds another
_LEAST = 8  # cells that a flexible column keeps


@dataclass(frozen=True, slots=True)
class Column:
    """A column's heading, and how its cells are laid out."""

    heading: str
    justify: Literal["left", "right"] = "left"
    flexible: bool = False  # gives way, with an ellipsis, when the terminal is too narrow
    optional: bool = False  # left out where the table is too wide after that


def number(heading: str, *, optional: bool = False) -> Column:
    """A column of numbers."""
    return Column(heading, "right", optional=optional)


def text_table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    *,
    width: int | None = None,
    footer: Sequence[str] | None = None,
) -> Table:
    """A table with a line below its headings and, if given, a last line set off.

    `width` is in terminal cells; None: as wide as it takes.
    """
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=_PADDING)
    table.header_style = "dim"
    widths = _widths(columns, [*rows, *([footer] if footer else [])], width)
    if width is not None and _total(widths) > width and any(c.optional for c in columns):
        last = max(i for i, column in enumerate(columns) if column.optional)
        return text_table(
            _without(columns, last),
            [_without(row, last) for row in rows],
            width=width,
            footer=footer and _without(footer, last),
        )
    for column, cells in zip(columns, widths, strict=True):
        table.add_column(
            fold(column.heading, cells), justify=column.justify, no_wrap=True, width=cells
        )
    for row in rows:
        table.add_row(*(styled(fold(cell, w)) for cell, w in zip(row, widths, strict=True)))
    if footer is not None:
        table.add_section()
        folded = [fold(cell, w) for cell, w in zip(footer, widths, strict=True)]
        table.add_row(*(Text(cell, style="bold") for cell in folded))
    return table


def _widths(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None
) -> list[int]:
    """Cells of each column: what its widest cell takes, less where the table is too wide.

    What is too much is taken from the widest flexible column first.
    """
    widths = [
        max(map(cell_len, (column.heading, *(row[i] for row in rows))))
        for i, column in enumerate(columns)
    ]
    if width is None:
        return widths
    flexible = [i for i, column in enumerate(columns) if column.flexible]
    excess = _total(widths) - width
    while excess > 0 and flexible:
        widest = max(flexible, key=widths.__getitem__)
        if widths[widest] <= _LEAST:
            break
        widths[widest] -= 1
        excess -= 1
    return widths


def _without(cells: Sequence[T], index: int) -> list[T]:
    return [*cells[:index], *cells[index + 1 :]]


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + _BETWEEN * (len(widths) - 1)


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


def styled(cell: str) -> Text:
    """The cell as text, coloured where it is a word that says how something went."""
    return Text(cell, style=_STYLES.get(cell, ""))
