"""The canonical form of stored rows: the bytes that are hashed.

A row is what Postgres sends for it in COPY ... (FORMAT binary): the number of columns (2
bytes), then for each column its length (4 bytes, -1 for null) and its value in Postgres'
binary form, all big-endian. So a real or a double is the very bits that are stored, a time
is microseconds since 2000-01-01 UTC, text is UTF-8, jsonb is the byte 1 and the text that
Postgres shows. What is hashed when a job ends and what is hashed at verification both come
from Postgres in this form; `encode` builds it from values, for rows kept elsewhere.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from marco_search.audit.binary import pack_numbers, pack_texts

REQUEST = {
    "id": "uuid",
    "tenant": "text",
    "kind": "text",
    "priority": "int2",
    "payload": "jsonb",
    "expected": "text",
    "payload_hash": "text",
    "idempotency_key": "text",
    "batch_id": "uuid",
    "created_at": "timestamptz",
}
"""The part of a row of jobs that is fixed when it is submitted."""

OUTCOME = {
    "id": "uuid",
    "state": "text",
    "attempts": "int4",
    "plan": "jsonb",
    "rounds": "int4",
    "rollouts": "int4",
    "nodes": "int4",
    "generated_tokens": "int8",
    "prompt_tokens": "int8",
    "cached_tokens": "int8",
    "seconds": "float8",
    "answer": "text",
    "confidence": "float8",
    "correct": "bool",
    "stop_reason": "text",
    "last_error": "jsonb",
    "expires_at": "timestamptz",
    "started_at": "timestamptz",
    "finished_at": "timestamptz",
}
"""The part that is fixed when the job ends."""

ATTEMPT = {
    "job_id": "uuid",
    "generation": "int8",
    "worker": "text",
    "host": "text",
    "pid": "int4",
    "runtime": "text",
    "runtime_version": "text",
    "model": "text",
    "revision": "text",
    "config": "jsonb",
    "prompt": "text",
    "seed": "int4",
    "started_at": "timestamptz",
}

EVENT = {
    "job_id": "uuid",
    "id": "int8",
    "generation": "int8",
    "event": "text",
    "detail": "jsonb",
    "at": "timestamptz",
}

# What has a fixed size stands first, so that one struct reads it (marco_search.audit.rows).
NODE = {
    "job_id": "uuid",
    "node_id": "int4",
    "parent_id": "int4",
    "round": "int4",
    "depth": "int4",
    "generation": "int8",
    "terminal": "bool",
    "created_at": "timestamptz",
    "token_ids": "int4[]",
    "logprobs": "float4[]",
    "confidences": "float8[]",
    "top_ids": "int4[]",
    "top_logprobs": "float4[]",
    "token_texts": "text[]",
    "action": "text",
    "text": "text",
}

ROLLOUT = {
    "job_id": "uuid",
    "rollout_id": "int4",
    "round": "int4",
    "start_id": "int4",
    "seed": "int4",
    "generation": "int8",
    "generated_tokens": "int4",
    "prompt_tokens": "int4",
    "cached_tokens": "int4",
    "confidence": "float8",
    "path_confidence": "float8",
    "value": "float8",
    "seconds": "float8",
    "created_at": "timestamptz",
    "path": "int4[]",
    "reflect": "text",
    "finish": "text",
    "answer": "text",
    "error": "text",
}

ANSWER = {
    "job_id": "uuid",
    "rank": "int4",
    "generation": "int8",
    "confidence": "float8",
    "votes": "int4",
    "share": "float8",
    "created_at": "timestamptz",
    "rollout_ids": "int4[]",
    "key": "text",
    "text": "text",
    "output": "text",
    "thought": "text",
}

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_NULL = struct.pack(">i", -1)


def microseconds(at: datetime) -> int:
    """Microseconds since 2000-01-01 UTC, exactly; `at` must have a time zone."""
    since = at - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


_SCALARS: dict[str, Callable[[Any], bytes]] = {
    "bool": struct.Struct(">?").pack,
    "int2": struct.Struct(">h").pack,
    "int4": struct.Struct(">i").pack,
    "int8": struct.Struct(">q").pack,
    "float4": struct.Struct(">f").pack,
    "float8": struct.Struct(">d").pack,
    "text": str.encode,
    "jsonb": lambda text: b"\x01" + text.encode(),  # the text as Postgres shows it
    "uuid": lambda value: UUID(str(value)).bytes,
    "timestamptz": lambda at: struct.pack(">q", microseconds(at)),
}


def encode(columns: Mapping[str, str], values: Sequence[Any]) -> bytes:
    """The canonical form of a row: `values` in the order of `columns` (name to type)."""
    out = [struct.pack(">h", len(columns))]
    for kind, value in zip(columns.values(), values, strict=True):
        if value is None:
            out.append(_NULL)
            continue
        data = _array(kind[:-2], value) if kind.endswith("[]") else _SCALARS[kind](value)
        out += (struct.pack(">i", len(data)), data)
    return b"".join(out)


def _array(kind: str, values: Sequence[Any]) -> bytes:
    return pack_texts(values) if kind == "text" else pack_numbers(kind, values)
