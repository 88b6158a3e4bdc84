"""The canonical form of stored rows: the bytes that are hashed.

A row is what Postgres sends for it in COPY ... (FORMAT binary): the number of columns (2
bytes), then for each column its length (4 bytes, -1 for null) and its value in Postgres'
binary form, all big-endian. So a real or a double is the very bits that are stored, a time
is microseconds since 2000-01-01 UTC, text is UTF-8, jsonb is the byte 1 and the text that
Postgres shows. What is hashed when a job ends and what is hashed at verification both come
from Postgres in this form; `encode` builds it from values, for rows kept elsewhere. Which
columns a row has is a matter of the format (marco_search.audit.v1).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from marco_search.audit.binary import pack_numbers, pack_texts

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


def decode(columns: Mapping[str, str], row: bytes) -> dict[str, Any]:
    """All values of a canonical row by column name; times, ids and arrays stay bytes."""
    out: dict[str, Any] = {}
    at = 2
    for name, kind in columns.items():
        size = int.from_bytes(row[at : at + 4], "big", signed=True)
        value, at = row[at + 4 : at + 4 + max(size, 0)], at + 4 + max(size, 0)
        if size < 0:
            out[name] = None
        elif kind in ("int2", "int4", "int8"):
            out[name] = int.from_bytes(value, "big", signed=True)
        elif kind == "float8":
            out[name] = struct.unpack(">d", value)[0]
        elif kind == "bool":
            out[name] = value != b"\x00"
        elif kind == "text":
            out[name] = value.decode()
        elif kind == "jsonb":
            out[name] = value[1:].decode()
        else:
            out[name] = value
    return out
