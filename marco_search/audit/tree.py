"""Computes the numbers of a tree and its rollouts again from its log-probs.

What follows from the log-probs and the paths is computed here a second time, apart from the
search that wrote it: every c_i, path, visit count, path confidence and value. Hashes compare
bits; here numbers agree if they differ by rounding only (another machine's exp may differ in
the last place).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marco_search.audit.canonical import ARRAY_HEAD, EMPTY_ARRAY, unpack_ints, unpack_texts
from marco_search.audit.findings import Finding
from marco_search.search.rewards import (
    CONFIDENCE,
    REWARDS,
    ScoredRollout,
    TokenScores,
    mean,
    reward_of,
)

TOP_K = 5
ROOT = 0
ROUNDING = 1e-9
# A server may score a text again a little differently: the stored node has the first scores.
_SCORED_AGAIN = 0.05

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
Rollout = SimpleNamespace
Wrong = tuple[str, str, str]
"""What is wrong, what was expected and what was found."""


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
    texts = unpack_texts(row["token_texts"], count) if count else []
    row["texts_agree"] = not count or b"".join(texts).decode() == row["text"]
    row["line_ends"] = tuple(b"\n" in text for text in texts)


def unpack_rollout(row: dict[str, Any]) -> None:
    """Read a rollout's arrays. Raises ValueError, TypeError or struct.error for others."""
    row["path"] = unpack_ints(row["path"])
    scores = row.get("scores")  # since format 3
    row["scores"] = None
    if scores is not None:
        row["scores"] = tuple(map(float, np.frombuffer(scores[ARRAY_HEAD:], _DOUBLES)["value"]))


def vector_confidences(
    logprobs: NDArray[np.float64], tops: NDArray[np.float64]
) -> NDArray[np.float64]:
    """c_i = exp(p) / sum_k exp(p_k), at most 1. Shapes: n and n x TOP_K (-inf: fewer)."""
    total = np.exp(tops).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.minimum(1.0, np.exp(logprobs) / total)
    return np.where(total > 0.0, found, 0.0)


def check_nodes(nodes: Sequence[Node]) -> tuple[list[Node], list[Finding]]:
    """The tree that the nodes (in id order) make up, by id from the root, and what is wrong.

    It ends before the first node that can't be placed.
    """
    stored = _numbers(nodes, "confidences", _DOUBLES)
    found = list(_check_confidences(nodes, stored))
    root = Node(parent_id=-1, depth=0, action="root", tokens=0, sum=0.0)
    root.path_tokens, root.path_sum = 0, 0.0
    tree = [root]
    total = np.concatenate([[0.0], np.cumsum(stored)])
    end = 0
    for node in nodes:
        begin, end = end, end + node.tokens
        wrong = _misplaced(tree, node)
        if wrong is not None:
            found.append(_finding(node, *wrong))
            if wrong[0] != "depth":
                return tree, found
        if not node.texts_agree:
            wanted = "its tokens' texts, joined"
            found.append(_finding(node, "text", wanted, "another text"))
        above = root if node.action == "reflection" else tree[node.parent_id]
        node.sum = float(total[end] - total[begin])
        node.path_tokens = above.path_tokens + node.tokens
        node.path_sum = above.path_sum + node.sum
        tree.append(node)
    return tree, found


def score_tokens(tree: Sequence[Node]) -> None:
    """Set the `scores` of each node: what rewards are computed from."""
    tree[0].scores = TokenScores(c=(), logprob=(), mean_top=(), line_ends=())
    for node in tree[1:]:
        tops = _numbers([node], "top_logprobs", _FLOATS).reshape(-1, TOP_K)
        kept = [[float(p) for p in row if p > -np.inf] for row in tops]
        node.scores = TokenScores(
            c=tuple(map(float, _numbers([node], "confidences", _DOUBLES))),
            logprob=tuple(map(float, _numbers([node], "logprobs", _FLOATS))),
            mean_top=tuple(map(mean, kept)),
            line_ends=node.line_ends,
        )


def _misplaced(tree: Sequence[Node], node: Node) -> Wrong | None:
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


def _check_confidences(nodes: Sequence[Node], stored: NDArray[np.float64]) -> Iterator[Finding]:
    logprobs = _numbers(nodes, "logprobs", _FLOATS)
    tops = _numbers(nodes, "top_logprobs", _FLOATS).reshape(-1, TOP_K)
    expected = vector_confidences(logprobs, tops)
    ends = np.cumsum([node.tokens for node in nodes])
    for i in np.flatnonzero(~(np.abs(expected - stored) <= ROUNDING)):
        at = int(np.searchsorted(ends, i, side="right"))
        what = f"c_i of token {i - (ends[at] - nodes[at].tokens)}"
        wanted = f"{expected[i]:.9g} by its log-probs"
        yield _finding(nodes[at], what, wanted, f"{stored[i]:.9g}")


def _finding(node: Node, what: str, expected: str, found: str) -> Finding:
    return Finding("nodes", f"node_id {node.node_id}", what, expected, found)


def check_rollouts(
    tree: Sequence[Node], rollouts: Sequence[Rollout], config: Mapping[str, Any]
) -> Iterator[Finding]:
    """What is wrong with the rollouts (in id order) of a search with this configuration."""
    reached = ROOT  # the greatest node id that an earlier rollout has reached
    for expected_id, row in enumerate(rollouts):
        wrong = _wrong_path(tree, row, expected_id)
        row.placed = wrong is None
        if wrong is None:
            reward = 0.0 if row.answer is None else _reward(tree, row, config, rollouts)
            wrong = _wrong_numbers(tree, row, config.get("seed"), reward, reached)
            reached = max(reached, *row.path)
        if wrong is not None:
            yield Finding("rollouts", f"rollout_id {row.rollout_id}", *wrong)


def backed_up(rollouts: Sequence[Rollout]) -> Mapping[int, list[float]]:
    """By node, the values that checked rollouts backed up."""
    values: dict[int, list[float]] = defaultdict(list)
    for row in rollouts:
        if row.placed and row.finish != "failed":
            for node_id in row.path:
                values[node_id].append(row.value)
    return values


def branch_seed(seed: int, branch_id: int) -> int:
    """The seed of a branch."""
    digest = sha256(f"{seed}:{branch_id}".encode()).digest()
    return int.from_bytes(digest[:4], "big") & 0x7FFF_FFFF


def _wrong_path(tree: Sequence[Node], row: Rollout, expected_id: int) -> Wrong | None:
    if row.rollout_id != expected_id:
        return "rollout_id", f"{expected_id}, the next", str(row.rollout_id)
    path = row.path
    if not path or path[0] != ROOT or not all(0 <= i < len(tree) for i in path):
        return "path", "nodes of the tree, root first", str(list(path))
    for above, below in pairwise(path):
        if tree[below].parent_id != above:
            return "path", f"{tree[below].parent_id} above node {below}", str(above)
    ends_at_start = row.finish == "failed" and path[-1] != row.start_id
    if row.start_id not in path or ends_at_start:
        return "start_id", f"a node of the path {list(path)}", str(row.start_id)
    forced = getattr(row, "forced", None)  # since format 3
    below = path[path.index(row.start_id) + 1 :]
    if forced is not None and below:
        first = next(iter(unpack_ints(tree[below[0]].token_ids)), None)
        if first != forced:
            return "forced", f"{first}, the first it has", str(forced)
    return None


def _reward(
    tree: Sequence[Node], row: Rollout, config: Mapping[str, Any], rollouts: Sequence[Rollout]
) -> float:
    """What the rollout should back up. Scores from outside are taken as they are."""
    name = reward_of(config)
    if name in CONFIDENCE:
        return float(row.confidence if name == "rollout" else row.path_confidence)
    return REWARDS[name](
        ScoredRollout(
            path=[tree[i].scores for i in row.path],
            start=row.path.index(row.start_id),
            answer=row.answer,
            others=[r.answer for r in rollouts[: row.rollout_id]],
            scores=row.scores or (),
        )
    )


def _wrong_numbers(
    tree: Sequence[Node], row: Rollout, seed: int | None, reward: float, reached: int
) -> Wrong | None:
    if not all(0.0 <= score <= 1.0 for score in row.scores or ()):
        return "scores", "numbers from 0 to 1", str(list(row.scores))
    if seed is not None and row.seed != branch_seed(seed, row.rollout_id):
        return "seed", str(branch_seed(seed, row.rollout_id)), str(row.seed)
    leaf = tree[row.path[-1]]
    along = leaf.path_sum / leaf.path_tokens if leaf.path_tokens else 0.0
    if not abs(row.path_confidence - along) <= ROUNDING:
        return "path_confidence", f"{along:.9g} by its nodes", f"{row.path_confidence:.9g}"
    if not abs(row.value - reward) <= ROUNDING:
        return "value", f"{reward:.9g}", f"{row.value:.9g}"
    if row.finish == "failed":
        return None if row.confidence == 0.0 else ("confidence", "0", f"{row.confidence:.9g}")
    return _wrong_confidence(tree, row, reached)


def _wrong_confidence(tree: Sequence[Node], row: Rollout, reached: int) -> Wrong | None:
    """Mean c_i of the tokens the rollout generated, which are on its path after its start.

    A thought that was made to reflect had begun to close: its closing is a node beside the
    path, below the node that the reflection follows.
    """
    ids = row.path[row.path.index(row.start_id) + 1 :]
    new = [tree[i] for i in ids]
    total, tokens = sum(n.sum for n in new), sum(n.tokens for n in new)
    shared = any(i <= reached for i in ids)
    choices = [(total, tokens)]
    if row.reflect == "at_end" and tokens != row.generated_tokens:
        beside = {n.parent_id for n in new if n.action == "reflection"}
        choices = [
            (total + n.sum, row.generated_tokens)
            for n in tree
            if n.parent_id in beside
            and n.action == "answer"
            and tokens + n.tokens == row.generated_tokens
        ]
        shared = True  # the closing may be an earlier rollout's
    if not choices or choices[0][1] != row.generated_tokens:
        return "generated_tokens", f"{tokens} on its path", str(row.generated_tokens)
    means = [s / n if n else 0.0 for s, n in choices]
    if any(abs(row.confidence - m) <= (_SCORED_AGAIN if shared else ROUNDING) for m in means):
        return None
    return "confidence", f"{means[0]:.9g} by its tokens", f"{row.confidence:.9g}"
