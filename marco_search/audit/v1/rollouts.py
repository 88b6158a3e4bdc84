"""Computes the rollouts' numbers again from the tree that the nodes make up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import sha256
from itertools import pairwise
from typing import Any
from uuid import UUID

from marco_search.audit.findings import Finding
from marco_search.audit.v1.nodes import ROUNDING, RebuiltTree
from marco_search.search.rewards import CONFIDENCE, REWARDS, ScoredRollout

ROOT = 0

# A server may score a text again a little differently: the stored node has the first scores.
_SCORED_AGAIN = 0.05


def check_rollouts(
    job_id: UUID, tree: RebuiltTree, rollouts: Sequence[Any], *, seed: int | None, value: str
) -> Iterator[Finding]:
    """What is wrong with the rollouts (in id order). Counts visits into `tree`.

    `seed` and `value` are the configuration's; without a seed the branches' are not checked.
    """
    seen = ROOT  # the greatest node id that an earlier rollout has reached
    for expected_id, row in enumerate(rollouts):
        wrong = _wrong_path(tree, row, expected_id)
        if wrong is None:
            reward = 0.0 if row.answer is None else _reward(tree, row, value, rollouts)
            wrong = _wrong_numbers(tree, row, seed, reward, seen)
            seen = max(seen, *row.path)
            if row.finish != "failed":
                for node_id in row.path:
                    tree.visits[node_id] = tree.visits.get(node_id, 0) + 1
                    tree.values[node_id] = tree.values.get(node_id, 0.0) + row.value
        if wrong is not None:
            key = f"job {job_id}, rollout_id {row.rollout_id}"
            yield Finding("rollouts", key, *wrong, job_id)


def _branch_seed(seed: int, branch_id: int) -> int:
    digest = sha256(f"{seed}:{branch_id}".encode()).digest()
    return int.from_bytes(digest[:4], "big") & 0x7FFF_FFFF


def _wrong_path(tree: RebuiltTree, row: Any, expected_id: int) -> tuple[str, str, str] | None:
    if row.rollout_id != expected_id:
        return "rollout_id", f"{expected_id}, the next", str(row.rollout_id)
    path, known = row.path, len(tree.parents)
    if not path or path[0] != ROOT or not all(0 <= i < known for i in path):
        return "path", "nodes of the tree, root first", str(list(path))
    for above, below in pairwise(path):
        if tree.parents[below] != above:
            return "path", f"{tree.parents[below]} above node {below}", str(above)
    ends_at_start = row.finish == "failed" and path[-1] != row.start_id
    if row.start_id not in path or ends_at_start:
        return "start_id", f"a node of the path {list(path)}", str(row.start_id)
    return None


def _reward(tree: RebuiltTree, row: Any, value: str, rollouts: Sequence[Any]) -> float:
    """What the rollout should back up; one that came from a service can't be computed again."""
    if value in CONFIDENCE:
        return float(row.path_confidence if value == "path" else row.confidence)
    if value not in REWARDS:
        return min(1.0, max(0.0, float(row.value)))
    return REWARDS[value](
        ScoredRollout(
            path=[tree.scores[i] for i in row.path],
            start=row.path.index(row.start_id),
            answer=row.answer,
            others=[r.answer for r in rollouts[: row.rollout_id]],
        )
    )


def _wrong_numbers(
    tree: RebuiltTree, row: Any, seed: int | None, reward: float, seen: int
) -> tuple[str, str, str] | None:
    if seed is not None and row.seed != _branch_seed(seed, row.rollout_id):
        return "seed", str(_branch_seed(seed, row.rollout_id)), str(row.seed)
    along = tree.path_confidence(row.path[-1])
    if not abs(row.path_confidence - along) <= ROUNDING:
        return "path_confidence", f"{along:.9g} by its nodes", f"{row.path_confidence:.9g}"
    if not abs(row.value - reward) <= ROUNDING:
        return "value", f"{reward:.9g}", f"{row.value:.9g}"
    if row.finish == "failed":
        return None if row.confidence == 0.0 else ("confidence", "0", f"{row.confidence:.9g}")
    return _wrong_confidence(tree, row, seen)


def _wrong_confidence(tree: RebuiltTree, row: Any, seen: int) -> tuple[str, str, str] | None:
    """Mean c_i of the tokens the rollout generated, which are on its path after its start.

    A thought that was made to reflect had begun to close: its closing is a node beside the
    path, below the node that the reflection follows.
    """
    new = row.path[row.path.index(row.start_id) + 1 :]
    total = sum(tree.sums[i] for i in new)
    tokens = sum(tree.tokens[i] for i in new)
    shared = any(i <= seen for i in new)
    choices = [(total, tokens)]
    if row.reflect == "at_end" and tokens != row.generated_tokens:
        beside = {tree.parents[i] for i in new if tree.actions[i] == "reflection"}
        choices = [
            (total + tree.sums[i], row.generated_tokens)
            for i, parent in enumerate(tree.parents)
            if parent in beside
            and tree.actions[i] == "answer"
            and tokens + tree.tokens[i] == row.generated_tokens
        ]
        shared = True  # the closing may be an earlier rollout's
    if not choices or choices[0][1] != row.generated_tokens:
        return "generated_tokens", f"{tokens} on its path", str(row.generated_tokens)
    means = [s / n if n else 0.0 for s, n in choices]
    if any(abs(row.confidence - m) <= (_SCORED_AGAIN if shared else ROUNDING) for m in means):
        return None
    return "confidence", f"{means[0]:.9g} by its tokens", f"{row.confidence:.9g}"
