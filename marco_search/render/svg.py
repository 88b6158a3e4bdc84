"""The tree as a static SVG: a card for each node, the winning path marked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from operator import itemgetter
from xml.sax.saxutils import escape

from marco_search.render.layout import Place, children_of, cut, instead, label, places, score
from marco_search.store.reads.job_record import TreeRow
from marco_search.text import escaped

# Pixels. A card of the drawing, and how far apart two are.
WIDTH, HEIGHT = 196, 40
COLUMN, ROW = 236, 54
_MARGIN, _HEAD = 20, 44
_CHARACTERS = 27  # of a card's first line

_INK, _MUTED, _LINE, _CARD = "#1c2330", "#5b6577", "#b4bccb", "#f6f7f9"
_WIN, _WIN_CARD, _REFLECTION = "#1d5fd0", "#e8f0fe", "#fff4df"
_FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"


def svg(nodes: Sequence[TreeRow], winning: Sequence[int], title: str) -> str:
    """A drawing of `nodes` (parents before children) under `title`; it loads nothing."""
    place = places(nodes, winning)
    on_path = frozenset(winning)
    right = max((p.column for p in place.values()), default=0)
    bottom = max((p.row for p in place.values()), default=0)
    width = 2 * _MARGIN + right * COLUMN + WIDTH
    height = 2 * _MARGIN + _HEAD + bottom * ROW + HEIGHT
    heading = cut(title, max(40, width // 8))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="{_FONT}" role="img">',
        f"<title>{_xml(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{_MARGIN}" y="34" font-size="16" fill="{_INK}">{_xml(heading)}</text>',
    ]
    # Lines first, so that cards lie above them; the winning path's last, above the others.
    children = children_of(nodes, on_path)
    edges = [(parent, c, c.node_id in on_path) for parent in place for c in children[parent]]
    for parent, child, wins in sorted(edges, key=itemgetter(2)):
        parts.append(_edge(place[parent], place[child.node_id], child.visits, wins))
    drawn = [node for node in nodes if node.node_id in place]
    parts += [_card(node, place[node.node_id], node.node_id in on_path) for node in drawn]
    return "\n".join([*parts, "</svg>\n"])


def _edge(parent: Place, child: Place, visits: int, wins: bool) -> str:
    x1, y1 = _corner(parent)
    x2, y2 = _corner(child)
    x1, y1, y2 = x1 + WIDTH, y1 + HEIGHT // 2, y2 + HEIGHT // 2
    bend = (x1 + x2) // 2
    thick = 3 if wins else 1 + min(visits, 8) / 8
    colour = _WIN if wins else _LINE
    return (
        f'<path d="M{x1} {y1}C{bend} {y1} {bend} {y2} {x2} {y2}" fill="none" '
        f'stroke="{colour}" stroke-width="{thick:g}"/>'
    )


def _card(node: TreeRow, place: Place, wins: bool) -> str:
    x, y = _corner(place)
    fill = _WIN_CARD if wins else _REFLECTION if node.action == "reflection" else _CARD
    stroke, thick = (_WIN, 2) if wins else (_LINE, 1)
    text = label(node.action, node.text)
    plural = "" if node.visits == 1 else "s"
    below = f"{node.visits} visit{plural} · value {score(node.value)}"
    fork = f"fork: {instead(node.fork)}" if node.fork else ""
    above = f'<text x="{x + 4}" y="{y - 3}" font-size="10" fill="{_MUTED}">{_xml(fork)}</text>'
    return (
        f"<g><title>{_xml(text)}</title>"
        f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="7" fill="{fill}" '
        f'stroke="{stroke}" stroke-width="{thick}"/>'
        f'<text x="{x + 10}" y="{y + 17}" font-size="12" fill="{_INK}">'
        f"{_xml(cut(text, _CHARACTERS))}</text>"
        f'<text x="{x + 10}" y="{y + 32}" font-size="10.5" fill="{_MUTED}">{below}</text>'
        f"{above if fork else ''}</g>"
    )


def _corner(place: Place) -> tuple[int, int]:
    return _MARGIN + place.column * COLUMN, _MARGIN + _HEAD + place.row * ROW


def _xml(text: str) -> str:
    """Escaped; control characters and half surrogates, which XML does not allow, spelt out."""
    return escape(re.sub("[\t\n\ufffe\uffff]", " ", escaped(text)))
