"""Computes a tree's numbers again from its log-probs, and names what does not agree.

What follows from the log-probs and the paths is computed here a second time, apart from the
search that wrote it: every c_i, path, visit count, path confidence and value. Bits are the
hashes' business; here numbers agree if they differ by rounding only (another machine's exp
may differ in the last place).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
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


@dataclass(slots=True)
class RebuiltTree:
    """A tree as its rows say it grew. Lists are indexed by node id; 0 is the root.

    Attributes:
        parents: The node above each.
        depths: Edges from the root.
        actions: What added each.
        tokens: Generated tokens of each.
        sums: Sums of their c_i.
        path_tokens: Tokens over the path since its last reflection.
        path_sums: The sums of their c_i.
        visits: Rollouts that pass through each.
        values: The sums of what these backed up.
        scores: Token scores of each, where a reward needs them.
    """

    parents: list[int] = field(default_factory=lambda: [-1])
    depths: list[int] = field(default_factory=lambda: [0])
    actions: list[str] = field(default_factory=lambda: ["root"])
    tokens: list[int] = field(default_factory=lambda: [0])
    sums: list[float] = field(default_factory=lambda: [0.0])
    path_tokens: list[int] = field(default_factory=lambda: [0])
    path_sums: list[float] = field(default_factory=lambda: [0.0])
    visits: dict[int, int] = field(default_factory=dict)
    values: dict[int, float] = field(default_factory=dict)
    scores: list[TokenScores] = field(default_factory=list)

    def path_confidence(self, node_id: int) -> float:
        """Mean c_i from the root, or the last reflection, to this node."""
        count = self.path_tokens[node_id]
        return self.path_sums[node_id] / count if count else 0.0


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


def check_nodes(job_id: UUID, nodes: Sequence[Any]) -> tuple[RebuiltTree, list[Finding]]:
    """The tree that the nodes (in id order) make up, and what is wrong with them."""
    stored = _numbers(b"".join(n.confidences for n in nodes), _DOUBLES)
    found = list(_check_confidences(job_id, nodes, stored))
    tree = RebuiltTree()
    total = np.concatenate([[0.0], np.cumsum(stored)])
    end = 0
    for expected_id, node in enumerate(nodes, start=1):
        begin, end = end, end + node.tokens
        wrong = _misplaced(tree, node, expected_id)
        if wrong is not None:
            found.append(_node(job_id, node, *wrong))
            if node.node_id != expected_id or not 0 <= node.parent_id < expected_id:
                return tree, found  # what follows can't be placed
        if not node.texts_agree:
            found.append(_node(job_id, node, "text", "its tokens' texts, joined", "another text"))
        restarts = node.action == "reflection"
        parent = node.parent_id
        tree.parents.append(parent)
        tree.depths.append(node.depth)
        tree.actions.append(node.action)
        tree.tokens.append(node.tokens)
        own = float(total[end] - total[begin])
        tree.sums.append(own)
        tree.path_sums.append((0.0 if restarts else tree.path_sums[parent]) + own)
        tree.path_tokens.append((0 if restarts else tree.path_tokens[parent]) + node.tokens)
    return tree, found


def node_scores(nodes: Sequence[Any]) -> list[TokenScores]:
    """What rewards are computed from, by node id."""
    found = [TokenScores(c=(), logprob=(), mean_top=())]
    for node in nodes:
        tops = _numbers(node.top_logprobs, _FLOATS).reshape(-1, TOP_K)
        kept = [[float(p) for p in row if p > -np.inf] for row in tops]
        found.append(
            TokenScores(
                c=tuple(map(float, _numbers(node.confidences, _DOUBLES))),
                logprob=tuple(map(float, _numbers(node.logprobs, _FLOATS))),
                mean_top=tuple(map(mean, kept)),
            )
        )
    return found


def _misplaced(tree: RebuiltTree, node: Any, expected_id: int) -> tuple[str, str, str] | None:
    if node.node_id != expected_id:
        return "node_id", f"{expected_id}, the next", str(node.node_id)
    if not 0 <= node.parent_id < node.node_id:
        return "parent_id", "a node before it", str(node.parent_id)
    depth = tree.depths[node.parent_id] + 1
    if node.depth != depth:
        return "depth", f"{depth}, one below its parent", str(node.depth)
    return None


def _numbers(data: bytes, kind: np.dtype[np.void]) -> NDArray[np.float64]:
    return np.frombuffer(data, kind)["value"].astype(np.float64)


def _check_confidences(
    job_id: UUID, nodes: Sequence[Any], stored: NDArray[np.float64]
) -> Iterator[Finding]:
    logprobs = _numbers(b"".join(n.logprobs for n in nodes), _FLOATS)
    tops = _numbers(b"".join(n.top_logprobs for n in nodes), _FLOATS).reshape(-1, TOP_K)
    wrong = ~(np.abs(vector_confidences(logprobs, tops) - stored) <= ROUNDING)
    if not wrong.any():
        return
    ends = np.cumsum([n.tokens for n in nodes])
    for i in np.flatnonzero(wrong):
        at = int(np.searchsorted(ends, i, side="right"))
        token = int(i - (ends[at] - nodes[at].tokens))
        expected = vector_confidences(logprobs[i : i + 1], tops[i : i + 1])[0]
        what = f"c_i of token {token}"
        yield _node(job_id, nodes[at], what, f"{expected:.9g} by its log-probs", f"{stored[i]:.9g}")


def _node(job_id: UUID, node: Any, what: str, expected: str, found: str) -> Finding:
    key = f"job {job_id}, node_id {node.node_id}"
    return Finding("nodes", key, what, expected, found, job_id)
