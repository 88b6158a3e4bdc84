"""Reads nodes, rollouts and answers out of their canonical bytes, as far as checks need.

A million of them are read in one verification, so what has a fixed size is read by one
struct and arrays of numbers stay bytes until numpy takes them all at once.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache

TOP_K = 5
_INT = struct.Struct(">i")
_SIZED = "i16s"  # each value stands behind its length
_NODE = struct.Struct(">h" + _SIZED + "ii" * 4 + "iq" + "i?" + "iq")
_ROLLOUT = struct.Struct(">h" + _SIZED + "ii" * 4 + "iq" + "ii" * 3 + "id" * 4 + "iq")
_ANSWER = struct.Struct(">h" + _SIZED + "ii" + "iq" + "id" + "ii" + "id" + "iq")
_ARRAY_HEAD = 20  # bytes of dimensions, nulls, element type, count, lower bound
_EMPTY_ARRAY = 12

UNREADABLE = (struct.error, ValueError, IndexError)
"""What reading raises for a row that no version of marco-search can have written."""


@dataclass(slots=True)
class NodeRow:
    """A node. The arrays are in Postgres' form without their heads; `tokens` counts them."""

    node_id: int
    parent_id: int
    round: int
    depth: int
    tokens: int
    logprobs: bytes
    confidences: bytes
    top_logprobs: bytes
    texts_fit: bool  # joined, the tokens' texts are the text
    action: str


@dataclass(slots=True)
class RolloutRow:
    """A rollout."""

    rollout_id: int
    round: int
    start_id: int
    seed: int
    generated_tokens: int
    prompt_tokens: int
    cached_tokens: int
    confidence: float
    path_confidence: float
    value: float
    path: tuple[int, ...]
    reflect: str
    finish: str
    answer: str | None


@dataclass(slots=True)
class AnswerRow:
    """An answer."""

    rank: int
    confidence: float
    votes: int
    share: float
    rollout_ids: tuple[int, ...]
    key: str
    text: str


def read_node(row: bytes) -> NodeRow:
    """The node in a canonical row. Raises one of UNREADABLE."""
    fixed = _NODE.unpack_from(row)
    at = _NODE.size
    size = _INT.unpack_from(row, at)[0]
    tokens = 0 if size == _EMPTY_ARRAY else (size - _ARRAY_HEAD) // 8
    layout, sizes = _arrays(tokens)
    parts = layout.unpack_from(row, at)
    if parts[::3] != sizes:
        raise ValueError("arrays of different lengths")
    texts, at = _value(row, at + layout.size)
    action, at = _text(row, at)
    text, at = _value(row, at)
    texts_fit = not tokens or _joined(texts or b"", tokens) == text
    return NodeRow(
        fixed[4], fixed[6], fixed[8], fixed[10],
        tokens, parts[5], parts[8], parts[14], texts_fit, action or "",
    )  # fmt: skip


@lru_cache(maxsize=4096)
def _arrays(tokens: int) -> tuple[struct.Struct, tuple[int, ...]]:
    """How a node's five arrays of numbers lie for this many tokens: layout, and their sizes."""
    counts = (tokens, tokens, tokens, TOP_K * tokens, TOP_K * tokens)
    bodies = [(4 + size) * n for size, n in zip((4, 4, 8, 4, 4), counts, strict=True)]
    head = _ARRAY_HEAD if tokens else _EMPTY_ARRAY
    layout = struct.Struct(">" + "".join(f"i{head}s{body}s" for body in bodies))
    return layout, tuple(head + body for body in bodies)


def read_rollout(row: bytes) -> RolloutRow:
    """The rollout in a canonical row. Raises one of UNREADABLE."""
    fixed = _ROLLOUT.unpack_from(row)
    path, at = _value(row, _ROLLOUT.size)
    reflect, at = _text(row, at)
    finish, at = _text(row, at)
    answer, at = _text(row, at)
    return RolloutRow(
        fixed[4], fixed[6], fixed[8], fixed[10], fixed[14], fixed[16], fixed[18],
        fixed[20], fixed[22], fixed[24],
        _ints(path or b""), reflect or "", finish or "", answer,
    )  # fmt: skip


def read_answer(row: bytes) -> AnswerRow:
    """The answer in a canonical row. Raises one of UNREADABLE."""
    fixed = _ANSWER.unpack_from(row)
    rollout_ids, at = _value(row, _ANSWER.size)
    key, at = _text(row, at)
    text, at = _text(row, at)
    return AnswerRow(
        fixed[4], fixed[8], fixed[10], fixed[12], _ints(rollout_ids or b""), key or "", text or ""
    )


def _count(array: bytes, size: int) -> int:
    """Elements of an array without nulls whose elements have `size` bytes."""
    if len(array) == _EMPTY_ARRAY:
        return 0
    count = int(_INT.unpack_from(array, 12)[0])
    if len(array) != _ARRAY_HEAD + (4 + size) * count:
        raise ValueError("not a plain array")
    return count


def _joined(array: bytes, count: int) -> bytes:
    at, parts, read = _ARRAY_HEAD, [], _INT.unpack_from
    for _ in range(count):
        end = at + 4 + read(array, at)[0]
        parts.append(array[at + 4 : end])
        at = end
    if at != len(array):
        raise ValueError("not an array of that many texts")
    return b"".join(parts)


def _ints(array: bytes) -> tuple[int, ...]:
    count = _count(array, 4)
    return struct.unpack_from(">" + "ii" * count, array, _ARRAY_HEAD)[1::2] if count else ()


def _value(row: bytes, at: int) -> tuple[bytes | None, int]:
    size = _INT.unpack_from(row, at)[0]
    if size < 0:
        return None, at + 4
    return row[at + 4 : at + 4 + size], at + 4 + size


def _text(row: bytes, at: int) -> tuple[str | None, int]:
    value, at = _value(row, at)
    return None if value is None else value.decode(), at
