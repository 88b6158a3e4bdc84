"""The tree as a Mermaid flowchart, which Markdown viewers draw."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from marco_search.render.layout import children_of, flow, instead, labels, score
from marco_search.store.reads.job_record import TreeRow

MAX_NODES = 400
"""Mermaid refuses more than 500 edges and 50,000 characters."""
_CELLS = 48  # of a node's text


def mermaid(nodes: Sequence[TreeRow], winning: Sequence[int]) -> str:
    """A flowchart of `nodes` (parents before children), MAX_NODES at most."""
    return "\n".join(_lines(nodes, frozenset(winning))) + "\n"


def _lines(nodes: Sequence[TreeRow], winning: frozenset[int]) -> Iterator[str]:
    children = children_of(nodes, winning)
    name_of = labels(nodes, children)
    yield f"flowchart {flow(children)}"
    for node in nodes:
        text = _entities(name_of[node.node_id].fitting(_CELLS))
        look = ":::winning" if node.node_id in winning else ""
        yield f'  n{node.node_id}["{text}<br/>{node.visits} × {score(node.value)}"]{look}'
    edge, thick = 0, []
    for parent, below in children.items():
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
