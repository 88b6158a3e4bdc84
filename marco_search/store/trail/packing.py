"""Nodes and rollouts as rows of a binary COPY, and back. Columns are named as the fields are.

What is read back is what was written, bit for bit: log-probs are float32 on both sides,
everything else that a search computes with is float64.

A node's arrays hold some 16 numbers a token. Their elements are turned into bytes for many nodes
at once; what is left per node is cutting and joining. A row at a time, psycopg needs twice the
processor time.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any
from uuid import UUID

import numpy as np

from marco_search import schema
from marco_search.audit.canonical import ARRAY_HEAD, EMPTY_ARRAY, FIXED, NUMBERS, pack_texts
from marco_search.errors import SearchError
from marco_search.search.branches import TOP_K, Finish, ReflectionPlacement, Token
from marco_search.search.tree import Node, Rollout

NO_CANDIDATE = -1
"""Fills `top_ids` where a token has fewer than TOP_K candidates."""


def written(table: schema.Table) -> dict[str, str]:
    """Name to type of the columns that a search fills: all but those with a default."""
    return {c.name: c.type for c in table.columns.values() if c.default is None}


NODE_COLUMNS = written(schema.NODES)
ROLLOUT_COLUMNS = written(schema.ROLLOUTS)

_SIGNATURE = b"PGCOPY\n\xff\r\n\0" + bytes(8)  # no flags, no extension
_TRAILER = b"\xff\xff"
_LENGTH = struct.Struct(">i")
_ARRAY = struct.Struct(">iiiiii")  # length in all, dimensions, flags, type, elements, lower bound
_AT_ONCE = 64  # nodes packed together: Postgres takes some in while the next are packed

_SCALARS = {name: FIXED[kind] for name, kind in NODE_COLUMNS.items() if kind in FIXED}
_OTHERS = [name for name in NODE_COLUMNS if name not in _SCALARS]
assert [*_SCALARS, *_OTHERS] == [*NODE_COLUMNS], "columns of fixed size stand first"


def _row_head() -> np.dtype[np.void]:
    """What a row begins with: the count of columns, then size and value of each scalar."""
    parts: list[tuple[str, Any]] = [("columns", ">i2")]
    for name, code in _SCALARS.items():
        value = np.dtype("V16" if code == "16s" else code).newbyteorder(">")
        parts += [(f"{name} size", ">i4"), (name, value)]
    return np.dtype(parts)


_HEAD = _row_head()


def copy_nodes(job_id: UUID, generation: int, nodes: Sequence[Node]) -> Iterator[bytes]:
    """What `COPY nodes (NODE_COLUMNS) FROM STDIN (FORMAT binary)` is to be sent, in parts."""
    head = _SIGNATURE
    for start in range(0, len(nodes), _AT_ONCE):
        yield head + _rows(job_id, generation, nodes[start : start + _AT_ONCE])
        head = b""
    yield head + _TRAILER


def _rows(job_id: UUID, generation: int, nodes: Sequence[Node]) -> bytes:
    tokens = [t for n in nodes for t in n.tokens]
    tops = [t.top for t in tokens]
    if sum(map(len, tops)) != TOP_K * len(tops):
        tops = [_filled(top) for top in tops]
    texts = [t.text for t in tokens]
    arrays: dict[str, Callable[[int, int], bytes]] = {
        "token_ids": _elements("int4", [t.id for t in tokens]),
        "token_texts": lambda a, b: _field(pack_texts(texts[a:b])),
        "logprobs": _elements("float4", [t.logprob for t in tokens]),
        "confidences": _elements("float8", [c for n in nodes for c in n.confidences]),
        "top_ids": _elements("int4", [i for top in tops for i, _ in top], TOP_K),
        "top_logprobs": _elements("float4", [p for top in tops for _, p in top], TOP_K),
    }
    others = [(name, arrays.get(name)) for name in _OTHERS]
    heads, size = _heads({"job_id": job_id.bytes, "generation": generation}, nodes), _HEAD.itemsize
    out, a = list[bytes](), 0
    for i, n in enumerate(nodes):
        b = a + len(n.tokens)
        out.append(heads[i * size : (i + 1) * size])
        for name, between in others:
            out.append(between(a, b) if between else _field(getattr(n, name).encode()))
        a = b
    return b"".join(out)


def _heads(attempt: dict[str, Any], nodes: Sequence[Node]) -> bytes:
    heads = np.empty(len(nodes), _HEAD)
    heads["columns"] = len(NODE_COLUMNS)
    for name in _SCALARS:
        heads[f"{name} size"] = _HEAD[name].itemsize
        known = attempt.get(name)
        if isinstance(known, bytes):
            known = np.void(known)
        heads[name] = [getattr(n, name) for n in nodes] if known is None else known
    return heads.tobytes()


def _elements(kind: str, values: Sequence[float], each: int = 1) -> Callable[[int, int], bytes]:
    """The field that holds the array of the numbers of the tokens from a to b."""
    code, size, oid = NUMBERS[kind]
    value = np.dtype(code).newbyteorder(">")
    elements = np.empty(len(values), [("size", ">i4"), ("value", value)])
    elements["size"] = size
    elements["value"] = np.frombuffer(array(code, values), code)
    data, width = elements.tobytes(), (4 + size) * each

    def between(a: int, b: int) -> bytes:
        return _head(oid, width * (b - a), each * (b - a)) + data[width * a : width * b]

    return between


@lru_cache(maxsize=1024)
def _head(oid: int, size: int, count: int) -> bytes:
    """The length of an array's field, and the array's head."""
    if not count:
        return _ARRAY.pack(EMPTY_ARRAY, 0, 0, oid, 0, 0)[:16]
    return _ARRAY.pack(ARRAY_HEAD + size, 1, 0, oid, count, 1)


def _field(data: bytes) -> bytes:
    return _LENGTH.pack(len(data)) + data


def _filled(top: tuple[tuple[int, float], ...]) -> tuple[tuple[int, float], ...]:
    """A token's candidates, made up to TOP_K."""
    missing = TOP_K - len(top)
    if missing < 0:
        raise SearchError(f"{len(top)} candidates for one token, {TOP_K} at most")
    return top + ((NO_CANDIDATE, float("-inf")),) * missing


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


def rollout(
    *, path: list[int], reflect: str, finish: str, scores: list[float] | None, **plain: Any
) -> Rollout:
    """The rollout that a row holds (a row factory's target)."""
    return Rollout(
        path=tuple(path),
        reflect=ReflectionPlacement(reflect),
        finish=Finish(finish),
        scores=None if scores is None else tuple(scores),
        **plain,
    )
