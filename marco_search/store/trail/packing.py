"""Nodes as rows of a binary COPY, packed a round at a time.

A node's arrays hold some 16 numbers a token. Their elements are turned into bytes for the whole
round at once; what is left per node is cutting and joining. A row at a time, psycopg needs twice
the processor time.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Sequence
from functools import lru_cache
from uuid import UUID

import numpy as np

from marco_search.audit.canonical import NUMBERS, pack_texts
from marco_search.search.branches import TOP_K
from marco_search.search.tree import Node
from marco_search.store.trail.records import NODE_COLUMNS, filled

SIGNATURE = b"PGCOPY\n\xff\r\n\0" + bytes(8)
"""Begins the file: no flags, no extension."""
TRAILER = b"\xff\xff"

COLUMNS = ("job_id", "generation", *NODE_COLUMNS)
_FIXED = struct.Struct(">hi16siq" + "ii" * 4)  # count of columns, then each value after its length
_LENGTH = struct.Struct(">i")
_ARRAY = struct.Struct(">iiiiii")  # length in all, dimensions, flags, type, elements, lower bound
_NO_ELEMENTS = struct.Struct(">iiii")


_AT_ONCE = 64
"""Nodes packed together: Postgres takes some in while the next are packed."""


def copy_nodes(job_id: UUID, generation: int, nodes: Sequence[Node]) -> Iterator[bytes]:
    """All that a `COPY nodes (COLUMNS) FROM STDIN (FORMAT binary)` is to be sent, in parts."""
    yield SIGNATURE
    for start in range(0, len(nodes), _AT_ONCE):
        yield _rows(job_id, generation, nodes[start : start + _AT_ONCE])
    yield TRAILER


def _rows(job_id: UUID, generation: int, nodes: Sequence[Node]) -> bytes:
    tokens = [t for n in nodes for t in n.tokens]
    tops = [t.top for t in tokens]
    if sum(map(len, tops)) != TOP_K * len(tops):
        tops = [filled(top) for top in tops]
    ids = _Elements("int4", [t.id for t in tokens])
    logprobs = _Elements("float4", [t.logprob for t in tokens])
    confidences = _Elements("float8", [c for n in nodes for c in n.confidences])
    top_ids = _Elements("int4", [i for top in tops for i, _ in top])
    top_logprobs = _Elements("float4", [p for top in tops for _, p in top])
    texts = [t.text for t in tokens]
    out, a = list[bytes](), 0
    for n in nodes:
        b = a + len(n.tokens)
        out += (
            _FIXED.pack(
                len(COLUMNS), 16, job_id.bytes, 8, generation,
                4, n.node_id, 4, n.parent_id, 4, n.round, 4, n.depth,
            ),
            *(_text(n.action), _text(n.text)),
            ids.between(a, b),
            _field(pack_texts(texts[a:b])),
            logprobs.between(a, b),
            confidences.between(a, b),
            top_ids.between(TOP_K * a, TOP_K * b),
            top_logprobs.between(TOP_K * a, TOP_K * b),
            b"\0\0\0\1\1" if n.terminal else b"\0\0\0\1\0",
        )  # fmt: skip
        a = b
    return b"".join(out)


class _Elements:
    """Numbers as elements of Postgres arrays: the length and the bytes of each, big-endian."""

    def __init__(self, kind: str, values: Sequence[float]) -> None:
        self._code, self._size, self._oid = NUMBERS[kind]
        value = np.dtype(self._code).newbyteorder(">")
        elements = np.empty(len(values), [("size", ">i4"), ("value", value)])
        elements["size"] = self._size
        elements["value"] = np.frombuffer(array(self._code, values), self._code)
        self._bytes = elements.tobytes()

    def between(self, a: int, b: int) -> bytes:
        """The field that holds the array of the numbers from a to b."""
        each = 4 + self._size
        return _head(self._oid, each, b - a) + self._bytes[each * a : each * b]


@lru_cache(maxsize=1024)
def _head(oid: int, each: int, count: int) -> bytes:
    if not count:
        return _NO_ELEMENTS.pack(12, 0, 0, oid)
    return _ARRAY.pack(20 + each * count, 1, 0, oid, count, 1)


def _text(value: str) -> bytes:
    return _field(value.encode())


def _field(data: bytes) -> bytes:
    return _LENGTH.pack(len(data)) + data
