"""The tree as a nested list: for screen readers, for print, and where scripts are off.

As in the terminal a chain stays on one level, so the list is as deep as there are choices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from marco_search.render.labels import label
from marco_search.render.order import children_of
from marco_search.store.reads.queries import TreeRow


@dataclass(frozen=True, slots=True)
class Item:
    """One line of the outline: open a list, or close some, before it."""

    node: TreeRow
    label: str
    wins: bool
    opens: bool  # it is the first of a list of its own
    closes: int  # lists that end before it
    choice: bool  # it is one of several children


def outline(nodes: Sequence[TreeRow], winning: Sequence[int]) -> Iterator[Item]:
    """The items in reading order, best first; those after the last close themselves."""
    if not nodes:
        return
    on_path = frozenset(winning)
    children = children_of(nodes, on_path)
    stack: list[tuple[TreeRow, int, bool]] = [(nodes[0], 1, False)]
    level = 0
    while stack:
        node, wanted, chosen = stack.pop()
        yield Item(
            node=node,
            label=label(node.action, node.text),
            wins=node.node_id in on_path,
            opens=wanted > level,
            closes=max(0, level - wanted),
            choice=chosen,
        )
        level = wanted
        below = children[node.node_id]
        several = len(below) > 1
        stack += [(child, wanted + several, several) for child in reversed(below)]
