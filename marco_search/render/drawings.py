"""The tree as a drawing: SVG, Graphviz' language (`dot -Tpdf`), a Mermaid flowchart."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from jinja2 import Environment, FileSystemLoader
from rich.cells import cell_len

from marco_search.render.layout import Layout, cut, flow, instead, labels, places, score, unsure
from marco_search.text import counted, escaped

MAX_NODES = 400
"""Mermaid refuses more than 500 edges and 50,000 characters."""
# Pixels of the SVG. A card is as wide as the longest label, up to a limit.
ROW, INDENT = 42, 28
_LEAST_WIDTH, _MOST_WIDTH, _COUNTS = 320, 640, 152
_CELL = 6.6  # of a label's text
_MARGIN, _HEAD = 20, 44


def svg(tree: Layout, title: str) -> str:
    """A drawing of the tree under `title`; it loads nothing."""
    longest = max((cell_len(name.whole) for name in labels(tree).values()), default=0)
    card = min(_MOST_WIDTH, max(_LEAST_WIDTH, round(longest * _CELL) + _COUNTS))
    corners = {
        node_id: (_MARGIN + place.column * INDENT, _MARGIN + _HEAD + place.row * ROW)
        for node_id, place in places(tree).items()
    }
    return _drawn(
        "svg.jinja",
        tree,
        corners,
        title=title,
        corners=corners,
        card=card,
        cells=int((card - _COUNTS) / _CELL),
        width=max((x for x, _ in corners.values()), default=_MARGIN) + card + _MARGIN,
        height=2 * _MARGIN + _HEAD + len(corners) * ROW,
        margin=_MARGIN,
    )


def dot(tree: Layout, title: str) -> str:
    """A digraph of the tree, the winning path in blue and thick."""
    return _drawn("dot.jinja", tree, tree.children, title=title)


def mermaid(tree: Layout) -> str:
    """A flowchart of the tree, of MAX_NODES at most."""
    return _drawn("mermaid.jinja", tree, tree.children)


def _drawn(name: str, tree: Layout, parents: Iterable[int], **values: Any) -> str:
    edges = [
        (i, child, child.node_id in tree.winning) for i in parents for child in tree.children[i]
    ]
    values |= {"tree": tree, "names": labels(tree), "flow": flow(tree), "edges": edges}
    values["thick"] = [number for number, edge in enumerate(edges) if edge[2]]
    return _templates().get_template(name).render(values)


@cache
def _templates() -> Environment:
    loader = FileSystemLoader(Path(__file__).parent)
    found = Environment(
        loader=loader, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    found.filters |= {"counted": counted, "cut": cut, "instead": instead, "score": score}
    found.filters |= {"unsure": unsure, "xml": _xml, "quoted": _quoted, "entities": _entities}
    return found


def _xml(text: str) -> str:
    """Escaped; control characters and half surrogates, which XML does not allow, spelt out."""
    return escape(re.sub("[\t\n\ufffe\uffff]", " ", escaped(text)))


def _quoted(text: str) -> str:
    """A double-quoted string of Graphviz; a line end in it is drawn as one."""
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{text}"'


def _entities(text: str) -> str:
    """Everything but letters, digits and spaces as a character code: no syntax and no HTML."""
    return "".join(c if c.isalnum() or c == " " else f"#{ord(c)};" for c in text)
