"""Computes the rollouts' numbers again from the tree that the nodes make up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from itertools import pairwise
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from marco_search.audit.findings import Finding
from marco_search.audit.v1.nodes import ROUNDING, Node
from marco_search.search.rewards import CONFIDENCE, REWARDS, ScoredRollout

ROOT = 0

# A server may score a text again a little differently: the stored node has the first scores.
_SCORED_AGAIN = 0.05

Rollout = SimpleNamespace
Wrong = tuple[str, str, str] | None
"""What is wrong, what was expected and what was found; None: nothing."""


def check_rollouts(
    job_id: UUID, tree: Sequence[Node], rollouts: Sequence[Rollout], config: Mapping[str, Any]
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
            key = f"job {job_id}, rollout_id {row.rollout_id}"
            yield Finding("rollouts", key, *wrong, job_id)


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


def _wrong_path(tree: Sequence[Node], row: Rollout, expected_id: int) -> Wrong:
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
    return None


def _reward(
    tree: Sequence[Node], row: Rollout, config: Mapping[str, Any], rollouts: Sequence[Rollout]
) -> float:
    """What the rollout should back up; one that came from a service can't be computed again."""
    name = config.get("value", "path")
    if name in CONFIDENCE:
        return float(row.path_confidence if name == "path" else row.confidence)
    if name not in REWARDS:
        return min(1.0, max(0.0, float(row.value)))
    return REWARDS[name](
        ScoredRollout(
            path=[tree[i].scores for i in row.path],
            start=row.path.index(row.start_id),
            answer=row.answer,
            others=[r.answer for r in rollouts[: row.rollout_id]],
        )
    )


def _wrong_numbers(
    tree: Sequence[Node], row: Rollout, seed: int | None, reward: float, reached: int
) -> Wrong:
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


def _wrong_confidence(tree: Sequence[Node], row: Rollout, reached: int) -> Wrong:
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
