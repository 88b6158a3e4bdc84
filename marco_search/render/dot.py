"""The tree in Graphviz' language: `dot -Tpdf`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from marco_search.render.layout import children_of, cut, flow, instead, labels, score
from marco_search.store.reads.job_record import TreeRow

_CELLS = 60  # of a node's text


def dot(nodes: Sequence[TreeRow], winning: Sequence[int], title: str) -> str:
    """A digraph of `nodes` (parents before children), the winning path in blue and thick."""
    return "\n".join(_lines(nodes, frozenset(winning), title)) + "\n"


def _lines(nodes: Sequence[TreeRow], winning: frozenset[int], title: str) -> Iterator[str]:
    children = children_of(nodes, winning)
    name_of = labels(nodes, children)
    yield "digraph tree {"
    look = f"labelloc=t; rankdir={flow(children)}; ordering=out;"
    yield f"  label={_quoted(cut(title, 200))}; {look}"
    yield '  node [shape=box, style="rounded,filled", fillcolor="#f6f7f9", color="#b4bccb",'
    yield '        fontname="sans-serif", fontsize=11];'
    yield '  edge [color="#b4bccb", arrowhead=none];'
    for node in nodes:
        text = name_of[node.node_id].fitting(_CELLS)
        visits = f"{node.visits} visit{'' if node.visits == 1 else 's'}"
        name = _quoted(f"{text}\n{visits}, value {score(node.value)}")
        wins = node.node_id in winning
        look = ', color="#1d5fd0", fillcolor="#e8f0fe", penwidth=2' if wins else ""
        yield f"  n{node.node_id} [label={name}{look}];"
    for parent, below in children.items():
        for child in below:
            edge = ['color="#1d5fd0", penwidth=3'] if child.node_id in winning else []
            edge += [f"label={_quoted(instead(child.fork))}, fontsize=9"] if child.fork else []
            shown = f" [{', '.join(edge)}]" if edge else ""
            yield f"  n{parent} -> n{child.node_id}{shown};"
    yield "}"


def _quoted(text: str) -> str:
    """A double-quoted string; a line end in it is drawn as one."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
