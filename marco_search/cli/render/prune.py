"""Which nodes of a large tree are drawn: the winning path, then those visited most."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from marco_search.render.order import TreeNode


def shown_nodes(
    nodes: Sequence[TreeNode], winning: frozenset[int], limit: int | None, depth: int | None
) -> frozenset[int]:
    """Ids of the nodes to draw: never a node without its parent.

    At most `limit` nodes, except that the winning path is always whole, and none more than
    `depth` edges below the root. None: no limit.
    """
    children: dict[int, list[TreeNode]] = {node.node_id: [] for node in nodes}
    depths = {nodes[0].node_id: 0}
    for node in nodes[1:]:
        assert node.parent_id is not None, "only the first node is a root"
        children[node.parent_id].append(node)
        depths[node.node_id] = depths[node.parent_id] + 1
    allowed = len(nodes) if limit is None else limit
    deepest = len(nodes) if depth is None else depth
    shown = {i for i in winning if depths.get(i, deepest + 1) <= deepest} | {nodes[0].node_id}
    frontier: list[tuple[int, int, int]] = []

    def offer(parent: int) -> None:
        for child in children[parent]:
            if child.node_id not in shown and depths[child.node_id] <= deepest:
                entry = (-child.visits, depths[child.node_id], child.node_id)
                heapq.heappush(frontier, entry)

    for node_id in tuple(shown):
        offer(node_id)
    while frontier and len(shown) < allowed:
        node_id = heapq.heappop(frontier)[2]
        shown.add(node_id)
        offer(node_id)
    return frozenset(shown)
