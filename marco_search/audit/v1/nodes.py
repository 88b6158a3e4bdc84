"""Computes a tree's numbers again from its log-probs, and names what does not agree.

What follows from the log-probs and the paths is computed here a second time, apart from the
search that wrote it: every c_i, path, visit count, path confidence and value. Hashes compare
bits; here numbers agree if they differ by rounding only (another machine's exp may differ in
the last place).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from marco_search.audit.canonical import ARRAY_HEAD, EMPTY_ARRAY, unpack_texts
from marco_search.audit.findings import Finding
from marco_search.search.rewards import TokenScores, mean

TOP_K = 5
ROUNDING = 1e-9

_ARRAYS = (
    ("logprobs", 1, 4),
    ("confidences", 1, 8),
    ("top_ids", TOP_K, 4),
    ("top_logprobs", TOP_K, 4),
)
"""A node's arrays of numbers: how many a token, and the bytes of each."""
_FLOATS = np.dtype([("size", ">i4"), ("value", ">f4")])
_DOUBLES = np.dtype([("size", ">i4"), ("value", ">f8")])

Node = SimpleNamespace
"""A node's row, with the count of its `tokens`, the `sum` of their c_i, and both over the path
since its last reflection (`path_tokens`, `path_sum`).
"""


def unpack_tokens(row: dict[str, Any]) -> None:
    """Count a node's tokens, and leave the elements of its arrays for NumPy to read at once.

    Raises ValueError, TypeError or struct.error for arrays that are none of a node's.
    """
    size = len(row["token_ids"])
    count = 0 if size == EMPTY_ARRAY else (size - ARRAY_HEAD) // 8
    for name, each, width in _ARRAYS:
        wanted = ARRAY_HEAD + (4 + width) * each * count if count else EMPTY_ARRAY
        if len(row[name]) != wanted:
            raise ValueError("arrays of different lengths")
        row[name] = row[name][ARRAY_HEAD:]
    row["tokens"] = count
    joined = unpack_texts(row["token_texts"], count).decode() if count else row["text"]
    row["texts_agree"] = joined == row["text"]


def vector_confidences(
    logprobs: NDArray[np.float64], tops: NDArray[np.float64]
) -> NDArray[np.float64]:
    """c_i = exp(p) / sum_k exp(p_k), at most 1. Shapes: n and n x TOP_K (-inf: fewer)."""
    total = np.exp(tops).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.minimum(1.0, np.exp(logprobs) / total)
    return np.where(total > 0.0, found, 0.0)


def check_nodes(job_id: UUID, nodes: Sequence[Node]) -> tuple[list[Node], list[Finding]]:
    """The tree that the nodes (in id order) make up, by id from the root, and what is wrong.

    It ends before the first node that can't be placed.
    """
    stored = _numbers(nodes, "confidences", _DOUBLES)
    found = list(_check_confidences(job_id, nodes, stored))
    root = Node(parent_id=-1, depth=0, action="root", tokens=0, sum=0.0)
    root.path_tokens, root.path_sum = 0, 0.0
    tree = [root]
    total = np.concatenate([[0.0], np.cumsum(stored)])
    end = 0
    for node in nodes:
        begin, end = end, end + node.tokens
        wrong = _misplaced(tree, node)
        if wrong is not None:
            found.append(_finding(job_id, node, *wrong))
            if wrong[0] != "depth":
                return tree, found
        if not node.texts_agree:
            wanted = "its tokens' texts, joined"
            found.append(_finding(job_id, node, "text", wanted, "another text"))
        above = root if node.action == "reflection" else tree[node.parent_id]
        node.sum = float(total[end] - total[begin])
        node.path_tokens = above.path_tokens + node.tokens
        node.path_sum = above.path_sum + node.sum
        tree.append(node)
    return tree, found


def score_tokens(tree: Sequence[Node]) -> None:
    """Set the `scores` of each node: what rewards are computed from."""
    tree[0].scores = TokenScores(c=(), logprob=(), mean_top=())
    for node in tree[1:]:
        tops = _numbers([node], "top_logprobs", _FLOATS).reshape(-1, TOP_K)
        kept = [[float(p) for p in row if p > -np.inf] for row in tops]
        node.scores = TokenScores(
            c=tuple(map(float, _numbers([node], "confidences", _DOUBLES))),
            logprob=tuple(map(float, _numbers([node], "logprobs", _FLOATS))),
            mean_top=tuple(map(mean, kept)),
        )


def _misplaced(tree: Sequence[Node], node: Node) -> tuple[str, str, str] | None:
    if node.node_id != len(tree):
        return "node_id", f"{len(tree)}, the next", str(node.node_id)
    if not 0 <= node.parent_id < node.node_id:
        return "parent_id", "a node before it", str(node.parent_id)
    depth = tree[node.parent_id].depth + 1
    if node.depth != depth:
        return "depth", f"{depth}, one below its parent", str(node.depth)
    return None


def _numbers(nodes: Sequence[Node], name: str, kind: np.dtype[np.void]) -> NDArray[np.float64]:
    data = b"".join([getattr(node, name) for node in nodes])
    return np.frombuffer(data, kind)["value"].astype(np.float64)


def _check_confidences(
    job_id: UUID, nodes: Sequence[Node], stored: NDArray[np.float64]
) -> Iterator[Finding]:
    logprobs = _numbers(nodes, "logprobs", _FLOATS)
    tops = _numbers(nodes, "top_logprobs", _FLOATS).reshape(-1, TOP_K)
    expected = vector_confidences(logprobs, tops)
    ends = np.cumsum([node.tokens for node in nodes])
    for i in np.flatnonzero(~(np.abs(expected - stored) <= ROUNDING)):
        at = int(np.searchsorted(ends, i, side="right"))
        what = f"c_i of token {i - (ends[at] - nodes[at].tokens)}"
        wanted = f"{expected[i]:.9g} by its log-probs"
        yield _finding(job_id, nodes[at], what, wanted, f"{stored[i]:.9g}")


def _finding(job_id: UUID, node: Node, what: str, expected: str, found: str) -> Finding:
    key = f"job {job_id}, node_id {node.node_id}"
    return Finding("nodes", key, what, expected, found, job_id)
