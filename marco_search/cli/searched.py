"""A search in this process as nodes to draw."""

from __future__ import annotations

from marco_search.cli.render.tree import DrawnNode
from marco_search.jobs import Job
from marco_search.search.mcts import Search


def drawn_nodes(search: Search) -> list[DrawnNode]:
    """The search's nodes, parents before children."""
    tree = search.tree
    return [
        DrawnNode(
            node_id=node.node_id,
            parent_id=node.parent_id,
            action=str(node.action),
            text=node.text,
            visits=tree.visits[node.node_id],
            value=tree.mean_value(node.node_id) if tree.visits[node.node_id] else None,
        )
        for node in tree.nodes
    ]


def winning_path(job: Job, search: Search) -> tuple[int, ...]:
    """Nodes from the root to the best answer's most confident leaf; empty without an answer."""
    ranked = search.ranked()
    return search.tree.rollouts[ranked[0].best_rollout_id].path if ranked else ()
