"""The canonical form of stored rows: the bytes that are hashed.

A row is what Postgres sends for it in COPY ... (FORMAT binary): the number of columns (2
bytes), then for each column its length (4 bytes, -1 for null) and its value in Postgres'
binary form, all big-endian. So a real or a double is the very bits that are stored, a time
is microseconds since 2000-01-01 UTC, text is UTF-8, jsonb is the byte 1 and the text that
Postgres shows. What is hashed when a job ends and what is hashed at verification both come
from Postgres in this form; `encode` builds it from values, for rows kept elsewhere. Which
columns a row has is a matter of the format (marco_search.audit.formats).

An array is its dimensions, flags, element type, length and lower bound (4 bytes each), then
length and value of each element. Arrays have one dimension and no nulls.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any
from uuid import UUID

NUMBERS = {"int4": ("i", 4, 23), "float4": ("f", 4, 700), "float8": ("d", 8, 701)}
"""Types of numbers in arrays: code of struct, bytes, oid."""
TEXT_OID = 25
ARRAY_HEAD, EMPTY_ARRAY = 20, 12
"""Bytes before the first element, and of an array without elements."""

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_INT = struct.Struct(">i")
_NULL = _INT.pack(-1)
_HEADER = struct.Struct(">iiiii")
_EMPTY = struct.Struct(">iii")
FIXED = {
    "bool": "?",
    "int2": "h",
    "int4": "i",
    "int8": "q",
    "float4": "f",
    "float8": "d",
    "uuid": "16s",
    "timestamptz": "q",
}


def microseconds(at: datetime) -> int:
    """Microseconds since 2000-01-01 UTC, exactly; `at` must have a time zone."""
    since = at - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


_PACKERS: dict[str, Callable[[Any], bytes]] = {
    **{kind: struct.Struct(f">{code}").pack for kind, code in FIXED.items()},
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
        data = _pack_array(kind[:-2], value) if kind.endswith("[]") else _PACKERS[kind](value)
        out += (_INT.pack(len(data)), data)
    return b"".join(out)


def _pack_array(kind: str, values: Sequence[Any]) -> bytes:
    if kind == "text":
        return pack_texts(values)
    code, size, oid = NUMBERS[kind]
    if not values:
        return _EMPTY.pack(0, 0, oid)
    pairs: list[float] = [size] * (2 * len(values))
    pairs[1::2] = values
    return struct.pack(">iiiii" + f"i{code}" * len(values), 1, 0, oid, len(values), 1, *pairs)


def pack_texts(values: Sequence[str]) -> bytes:
    """An array of texts."""
    if not values:
        return _EMPTY.pack(0, 0, TEXT_OID)
    return _HEADER.pack(1, 0, TEXT_OID, len(values), 1) + b"".join(map(_pack_text, values))


@lru_cache(maxsize=1 << 16)  # texts are those of tokens: few, and often again
def _pack_text(text: str) -> bytes:
    data = text.encode()
    return _INT.pack(len(data)) + data


def unpack_ints(array: bytes) -> tuple[int, ...]:
    """The numbers of an int4[]. Raises ValueError or struct.error for anything else."""
    if len(array) == EMPTY_ARRAY:
        return ()
    count = _INT.unpack_from(array, 12)[0]
    if len(array) != ARRAY_HEAD + 8 * count:
        raise ValueError("not a plain array")
    return struct.unpack_from(">" + "ii" * count, array, ARRAY_HEAD)[1::2]


def unpack_texts(array: bytes, count: int) -> list[bytes]:
    """The `count` texts of a text[]. Raises ValueError or struct.error."""
    at, parts, read = ARRAY_HEAD, [], _INT.unpack_from
    for _ in range(count):
        end = at + 4 + read(array, at)[0]
        parts.append(array[at + 4 : end])
        at = end
    if at != len(array):
        raise ValueError("not an array of that many texts")
    return parts


class Reader:
    """Reads rows with some columns.

    A time is microseconds as in the row, an id its bytes, an array what `unpack_ints` and
    `unpack_texts` read.
    """

    def __init__(self, columns: Mapping[str, str]) -> None:
        """`columns`: name to type."""
        self._readers = [(name, _reader(kind)) for name, kind in columns.items()]

    def read(self, row: bytes) -> dict[str, Any]:
        """The values by column name. Raises ValueError or struct.error for no such row."""
        values: dict[str, Any] = {}
        at = 2
        for name, read in self._readers:
            size = _INT.unpack_from(row, at)[0]
            at += 4
            values[name] = read(row[at : at + size]) if size >= 0 else None
            at += max(size, 0)
        return values


def _reader(kind: str) -> Callable[[bytes], Any]:
    if kind in FIXED:
        unpack = struct.Struct(f">{FIXED[kind]}").unpack
        return lambda value: unpack(value)[0]
    if kind == "text":
        return bytes.decode
    return (lambda value: value[1:].decode()) if kind == "jsonb" else bytes
