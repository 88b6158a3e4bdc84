"""The tree as a drawing: SVG, Graphviz' language (`dot -Tpdf`), a Mermaid flowchart."""

from __future__ import annotations

import re
from collections.abc import Iterator
from operator import itemgetter
from xml.sax.saxutils import escape

from rich.cells import cell_len

from marco_search.render.layout import (
    Label,
    Layout,
    Place,
    cut,
    flow,
    instead,
    labels,
    places,
    score,
    unsure,
)
from marco_search.store.reads.job_record import TreeRow
from marco_search.text import counted, escaped

_DOT_CELLS, _MERMAID_CELLS = 60, 48  # of a node's text
MAX_NODES = 400
"""Mermaid refuses more than 500 edges and 50,000 characters."""
# Pixels. A card is as wide as the longest label, up to a limit.
HEIGHT, ROW, INDENT = 28, 42, 28
_LEAST_WIDTH, _MOST_WIDTH, _COUNTS = 320, 640, 152
_CELL = 6.6  # of a label's text
_RAIL = 12  # from a card's left edge to the line that leads down from it
_MARGIN, _HEAD = 20, 44

_INK, _MUTED, _LINE, _CARD = "#1c2330", "#5b6577", "#b4bccb", "#f6f7f9"
_WIN, _WIN_CARD, _REFLECTION, _UNSURE = "#1d5fd0", "#e8f0fe", "#fff4df", "#855400"
_FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"


def svg(tree: Layout, title: str) -> str:
    """A drawing of the tree under `title`; it loads nothing."""
    place, name_of, children = places(tree), labels(tree), tree.children
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
    edges = [(parent, c, c.node_id in tree.winning) for parent in place for c in children[parent]]
    for parent, child, wins in sorted(edges, key=itemgetter(2)):
        parts.append(_edge(place[parent], place[child.node_id], child.visits, wins))
    for node in tree.nodes:
        if at := place.get(node.node_id):
            wins = node.node_id in tree.winning
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


def dot(tree: Layout, title: str) -> str:
    """A digraph of the tree, the winning path in blue and thick."""
    return "\n".join(_dot_lines(tree, title)) + "\n"


def _dot_lines(tree: Layout, title: str) -> Iterator[str]:
    name_of, winning = labels(tree), tree.winning
    yield "digraph tree {"
    look = f"labelloc=t; rankdir={flow(tree)}; ordering=out;"
    yield f"  label={_quoted(cut(title, 200))}; {look}"
    yield '  node [shape=box, style="rounded,filled", fillcolor="#f6f7f9", color="#b4bccb",'
    yield '        fontname="sans-serif", fontsize=11];'
    yield '  edge [color="#b4bccb", arrowhead=none];'
    for node in tree.nodes:
        text = name_of[node.node_id].fitting(_DOT_CELLS)
        name = _quoted(f"{text}\n{counted(node.visits, 'visit')}, value {score(node.value)}")
        wins = node.node_id in winning
        look = ', color="#1d5fd0", fillcolor="#e8f0fe", penwidth=2' if wins else ""
        yield f"  n{node.node_id} [label={name}{look}];"
    for parent, below in tree.children.items():
        for child in below:
            edge = ['color="#1d5fd0", penwidth=3'] if child.node_id in winning else []
            edge += [f"label={_quoted(instead(child.fork))}, fontsize=9"] if child.fork else []
            shown = f" [{', '.join(edge)}]" if edge else ""
            yield f"  n{parent} -> n{child.node_id}{shown};"
    yield "}"


def _quoted(text: str) -> str:
    """A double-quoted string; a line end in it is drawn as one."""
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{text}"'


def mermaid(tree: Layout) -> str:
    """A flowchart of the tree, of MAX_NODES at most."""
    return "\n".join(_mermaid_lines(tree)) + "\n"


def _mermaid_lines(tree: Layout) -> Iterator[str]:
    name_of, winning = labels(tree), tree.winning
    yield f"flowchart {flow(tree)}"
    for node in tree.nodes:
        text = _entities(name_of[node.node_id].fitting(_MERMAID_CELLS))
        look = ":::winning" if node.node_id in winning else ""
        yield f'  n{node.node_id}["{text}<br/>{node.visits} × {score(node.value)}"]{look}'
    edge, thick = 0, []
    for parent, below in tree.children.items():
        for child in below:
            fork = f'|"{_entities(instead(child.fork))}"| ' if child.fork else ""
            yield f"  n{parent} --- {fork}n{child.node_id}"
            if child.node_id in winning:
                thick.append(str(edge))
            edge += 1
    yield "  classDef winning stroke:#1d5fd0,stroke-width:2px,fill:#e8f0fe,color:#1c2330"
    if thick:
        yield f"  linkStyle {','.join(thick)} stroke:#1d5fd0,stroke-width:3px"


def _entities(text: str) -> str:
    """Everything but letters, digits and spaces as a character code: no syntax and no HTML."""
    return "".join(c if c.isalnum() or c == " " else f"#{ord(c)};" for c in text)
