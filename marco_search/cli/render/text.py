"""Text from elsewhere (models, callers, the database) made fit for one line of a terminal."""

from __future__ import annotations

from rich.cells import cell_len, set_cell_size

from marco_search.render.layout import ELLIPSIS as ELLIPSIS
from marco_search.render.layout import one_line as one_line


def fold(text: str, width: int) -> str:
    """`text` cut to `width` terminal cells (a Chinese character takes two), with an ellipsis."""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, max(0, width - 1)).rstrip() + ELLIPSIS


def wrap(text: str, width: int) -> list[str]:
    """`text` as lines of at most `width` cells; breaks at spaces where a line has one."""
    lines: list[str] = []
    rest = text
    while cell_len(rest) > width:
        head = set_cell_size(rest, width).rstrip(" ")
        # set_cell_size pads where a wide character would be halved.
        size = max(1, len(head))
        space = rest.rfind(" ", 0, size + 1)
        if space > size // 2:
            size = space
        lines.append(rest[:size].rstrip())
        rest = rest[size:].lstrip()
    return [*lines, rest] if rest or not lines else lines


def fraction(value: float | None) -> str:
    """A value in [0, 1] as three decimals, ".962"; "-" for none."""
    if value is None:
        return "-"
    return f"{value:.3f}".removeprefix("0")


def percent(value: float | None) -> str:
    """A value in [0, 1] as whole percents, "96%"; "" for none."""
    return "" if value is None else f"{value:.0%}"
