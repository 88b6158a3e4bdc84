"""Where every node stands: a column for each depth, a row for each leaf.

The best child stands in its parent's row, so the winning path is a straight line along the
top, a chain of steps reads from left to right, and only a choice goes down:

    root ── a ── b ── answer
         │    └─ c ── answer
         └─ d ── answer
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from marco_search.render.order import TreeNode, children_of


@dataclass(frozen=True, slots=True)
class Place:
    """A cell of the grid; the root is in column 0, row 0."""

    column: int
    row: int


def places(nodes: Sequence[TreeNode], winning: Collection[int]) -> dict[int, Place]:
    """The place of each node by its id. `nodes` has parents before children."""
    if not nodes:
        return {}
    children = children_of(nodes, winning)
    found: dict[int, Place] = {}
    last_row = -1
    # A stack, not recursion: a chain of mini-steps may be deeper than Python's stack.
    stack: list[tuple[int, int, int | None]] = [(nodes[0].node_id, 0, None)]
    while stack:
        node_id, column, row = stack.pop()
        if row is None:
            last_row += 1
            row = last_row
        found[node_id] = Place(column, row)
        for i in reversed(range(len(children[node_id]))):
            child = children[node_id][i].node_id
            stack.append((child, column + 1, row if i == 0 else None))
    return found
