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

from marco_search.cli.tree_text import wrap_cells
from marco_search.render.layout import cut

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
