"""Nodes and rollouts as rows, and back. Columns are named as the fields are.

What is read back is what was written, bit for bit: log-probs are float32 on both sides,
everything else that a search computes with is float64.
"""

from __future__ import annotations

from typing import Any

from marco_search.errors import SearchError
from marco_search.search.branches import TOP_K, Finish, ReflectionPlacement, Token
from marco_search.search.tree import Node, Rollout

NO_CANDIDATE = -1
"""Fills `top_ids` where a token has fewer than TOP_K candidates."""

NODE_COLUMNS = {
    "node_id": "int4",
    "parent_id": "int4",
    "round": "int4",
    "depth": "int4",
    "action": "text",
    "text": "text",
    "token_ids": "int4[]",
    "token_texts": "text[]",
    "logprobs": "float4[]",
    "confidences": "float8[]",
    "top_ids": "int4[]",
    "top_logprobs": "float4[]",
    "terminal": "bool",
}
"""Column to Postgres type, in the order of `packing.copy_nodes`."""

ROLLOUT_COLUMNS = {
    "rollout_id": "int4",
    "round": "int4",
    "start_id": "int4",
    "path": "int4[]",
    "seed": "int4",
    "reflect": "text",
    "finish": "text",
    "confidence": "float8",
    "path_confidence": "float8",
    "value": "float8",
    "answer": "text",
    "generated_tokens": "int4",
    "prompt_tokens": "int4",
    "cached_tokens": "int4",
    "seconds": "float8",
    "error": "text",
}
"""Column to Postgres type: exactly the fields of Rollout."""


def filled(top: tuple[tuple[int, float], ...]) -> tuple[tuple[int, float], ...]:
    """A token's candidates, made up to TOP_K."""
    missing = TOP_K - len(top)
    if missing < 0:
        raise SearchError(f"{len(top)} candidates for one token, {TOP_K} at most")
    return top + ((NO_CANDIDATE, float("-inf")),) * missing


def rollout_row(rollout: Rollout) -> tuple[Any, ...]:
    """The values of ROLLOUT_COLUMNS. psycopg knows arrays as lists."""
    values = {name: getattr(rollout, name) for name in ROLLOUT_COLUMNS}
    return tuple((values | {"path": list(rollout.path)}).values())


def node(
    *,
    token_ids: list[int],
    token_texts: list[str],
    logprobs: list[float],
    confidences: list[float],
    top_ids: list[int],
    top_logprobs: list[float],
    **plain: Any,
) -> Node:
    """The node that a row holds (a row factory's target)."""
    candidates = list(zip(top_ids, top_logprobs, strict=True))
    tokens = []
    for i, token_id in enumerate(token_ids):
        top = tuple(candidates[i * TOP_K : (i + 1) * TOP_K])
        if top[-1][0] == NO_CANDIDATE:
            top = tuple(c for c in top if c[0] != NO_CANDIDATE)
        tokens.append(Token(token_id, token_texts[i], logprobs[i], top))
    return Node(tokens=tuple(tokens), confidences=tuple(confidences), **plain)


def rollout(*, path: list[int], reflect: str, finish: str, **plain: Any) -> Rollout:
    """The rollout that a row holds (a row factory's target)."""
    return Rollout(
        path=tuple(path), reflect=ReflectionPlacement(reflect), finish=Finish(finish), **plain
    )
