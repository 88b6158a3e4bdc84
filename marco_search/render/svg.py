"""The tree as a static SVG: a card for each node, the winning path marked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from operator import itemgetter
from xml.sax.saxutils import escape

from rich.cells import cell_len

from marco_search.render.layout import (
    Label,
    Place,
    children_of,
    cut,
    labels,
    places,
    score,
    unsure,
)
from marco_search.store.reads.job_record import TreeRow
from marco_search.text import counted, escaped

# Pixels. A card is as wide as the longest label, up to a limit.
HEIGHT, ROW, INDENT = 28, 42, 28
_LEAST_WIDTH, _MOST_WIDTH, _COUNTS = 320, 640, 152
_CELL = 6.6  # of a label's text
_RAIL = 12  # from a card's left edge to the line that leads down from it
_MARGIN, _HEAD = 20, 44

_INK, _MUTED, _LINE, _CARD = "#1c2330", "#5b6577", "#b4bccb", "#f6f7f9"
_WIN, _WIN_CARD, _REFLECTION, _UNSURE = "#1d5fd0", "#e8f0fe", "#fff4df", "#855400"
_FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"


def svg(nodes: Sequence[TreeRow], winning: Sequence[int], title: str) -> str:
    """A drawing of `nodes` (parents before children) under `title`; it loads nothing."""
    place = places(nodes, winning)
    on_path = frozenset(winning)
    children = children_of(nodes, on_path)
    name_of = labels(nodes, children)
    longest = max((cell_len(name.whole) for name in name_of.values()), default=0)
    card = min(_MOST_WIDTH, max(_LEAST_WIDTH, round(longest * _CELL) + _COUNTS))
    width = 2 * _MARGIN + max((p.column for p in place.values()), default=0) * INDENT + card
    height = 2 * _MARGIN + _HEAD + len(place) * ROW
    heading = _xml(cut(title, width // 9))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="{_FONT}" role="img">',
        f"<title>{_xml(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{_MARGIN}" y="34" font-size="16" fill="{_INK}">{heading}</text>',
    ]
    # Lines first, so that cards lie above them; the winning path's last, above the others.
    edges = [(parent, c, c.node_id in on_path) for parent in place for c in children[parent]]
    for parent, child, wins in sorted(edges, key=itemgetter(2)):
        parts.append(_edge(place[parent], place[child.node_id], child.visits, wins))
    for node in nodes:
        if at := place.get(node.node_id):
            wins = node.node_id in on_path
            parts.append(_card(node, name_of[node.node_id], at, card, wins))
            parts += _note(unsure(children[node.node_id]), at)
    return "\n".join([*parts, "</svg>\n"])


def _edge(parent: Place, child: Place, visits: int, wins: bool) -> str:
    (x1, y1), (x2, y2) = _corner(parent), _corner(child)
    x1, y1 = x1 + _RAIL, y1 + HEIGHT
    turn = f"V{y2 + HEIGHT // 2 - 6}q0 6 6 6H{x2}" if x2 > x1 else f"V{y2}"
    thick = 3 if wins else 1 + min(visits, 8) / 8
    colour = _WIN if wins else _LINE
    return f'<path d="M{x1} {y1}{turn}" fill="none" stroke="{colour}" stroke-width="{thick:g}"/>'


def _card(node: TreeRow, name: Label, place: Place, width: int, wins: bool) -> str:
    x, y = _corner(place)
    fill = _WIN_CARD if wins else _REFLECTION if node.action == "reflection" else _CARD
    stroke, thick = (_WIN, 2) if wins else (_LINE, 1)
    counts = f"{counted(node.visits, 'visit')} · value {score(node.value)}"
    text = name.fitting(int((width - _COUNTS) / _CELL))
    return (
        f"<g><title>{_xml(name.whole)}</title>"
        f'<rect x="{x}" y="{y}" width="{width}" height="{HEIGHT}" rx="6" fill="{fill}" '
        f'stroke="{stroke}" stroke-width="{thick}"/>'
        f'<text x="{x + 10}" y="{y + 18}" font-size="12" fill="{_INK}">{_xml(text)}</text>'
        f'<text x="{x + width - 10}" y="{y + 18}" font-size="10.5" text-anchor="end" '
        f'fill="{_MUTED}">{counts}</text></g>'
    )


def _note(text: str | None, place: Place) -> list[str]:
    """What the model hesitated between, above the ways that begin below this card."""
    if not text:
        return []
    x, y = _corner(place)
    return [
        f'<text x="{x + INDENT}" y="{y + ROW - 4}" font-size="10.5" font-style="italic" '
        f'fill="{_UNSURE}">{_xml(cut(text, 100))}</text>'
    ]


def _corner(place: Place) -> tuple[int, int]:
    return _MARGIN + place.column * INDENT, _MARGIN + _HEAD + place.row * ROW


def _xml(text: str) -> str:
    """Escaped; control characters and half surrogates, which XML does not allow, spelt out."""
    return escape(re.sub("[\t\n\ufffe\uffff]", " ", escaped(text)))
