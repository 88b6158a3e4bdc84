"""Tables, from rows of text. No markup is read from a cell: a model may have written it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import RenderableType
from rich.constrain import Constrain
from rich.table import Table
from rich.text import Text

_BETWEEN = 2  # cells between two columns
_LEAST = 8  # cells that a flexible column keeps
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


@dataclass(frozen=True, slots=True)
class Column:
    """A column's heading, the text of an item's cell, and how the cells are laid out.

    A flexible column gives way, with an ellipsis, when the terminal is too narrow. An optional
    one is left out where that is not enough, the last first.
    """

    heading: str
    cell: Callable[[Any], str]
    justify: Literal["left", "right"] = "left"
    flexible: bool = False
    optional: bool = False


def number(heading: str, cell: Callable[[Any], str], *, optional: bool = False) -> Column:
    """A column of numbers."""
    return Column(heading, cell, "right", optional=optional)


def text_table(
    columns: Sequence[Column],
    items: Iterable[Any],
    *,
    width: int | None = None,
    footer: Mapping[str, str] | None = None,
) -> RenderableType:
    """A row for each item, below the headings and, if given, a last line set off.

    `width` is in terminal cells; None: as wide as it takes. `footer` is by heading.
    """
    rows = [[column.cell(item) for column in columns] for item in items]
    last = [(footer or {}).get(column.heading, "") for column in columns]
    kept = _fitting(columns, [*rows, last], width)
    # A cell of padding to the right; the box adds another.
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.header_style = "dim"
    for i, least in kept.items():
        heading, flexible = _cell(columns[i].heading), columns[i].flexible
        table.add_column(heading, justify=columns[i].justify, no_wrap=not flexible, min_width=least)
    for row in rows:
        table.add_row(*(_cell(row[i], _STYLES.get(row[i], "")) for i in kept))
    if footer:
        table.add_section()
        table.add_row(*(_cell(last[i], "bold") for i in kept))
    return table if width is None else Constrain(table, width)


def _fitting(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None
) -> dict[int, int]:
    """Indexes of the columns that there is room for, and the cells that each needs at least."""
    kept = {}
    for i, column in enumerate(columns):
        widest = max(map(cell_len, (column.heading, *(row[i] for row in rows))))
        kept[i] = min(widest, _LEAST) if column.flexible else widest
    optional = [i for i, column in enumerate(columns) if column.optional]
    while width is not None and optional and sum(kept.values()) + _BETWEEN * len(kept) > width:
        del kept[optional.pop()]
    return kept


def _cell(text: str, style: str = "") -> Text:
    # On one line, also in a column that gives way.
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")
