"""The order of siblings in every picture: the winning path first, then the most visited."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol, TypeVar


class TreeNode(Protocol):
    """What a picture needs to know of a node. The root has no parent."""

    @property
    def node_id(self) -> int: ...
    @property
    def parent_id(self) -> int | None: ...
    @property
    def action(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def visits(self) -> int: ...
    @property
    def value(self) -> float | None: ...


N = TypeVar("N", bound=TreeNode)


def children_of(nodes: Sequence[N], winning: Collection[int]) -> dict[int, list[N]]:
    """The children of every node, best first. The first of `nodes` is the root.

    A node whose parent is gone hangs from the root: a tree that was tampered with is drawn,
    too, and verification says what is wrong with it.
    """
    children: dict[int, list[N]] = {node.node_id: [] for node in nodes}
    for node in nodes[1:]:
        parent = nodes[0].node_id if node.parent_id is None else node.parent_id
        children[parent if parent in children else nodes[0].node_id].append(node)
    for siblings in children.values():
        siblings.sort(key=lambda node: _rank(node, winning))
    return children


def _rank(node: TreeNode, winning: Collection[int]) -> tuple[bool, int, float, int]:
    on_path = node.node_id in winning
    return (not on_path, -node.visits, -(node.value or 0.0), node.node_id)
