"""One-dimensional arrays without nulls in Postgres' binary form.

Dimensions, flags, element type, length, lower bound, then length and bytes of each element;
all integers big-endian of 4 bytes. Packs a whole list at once, about ten times as fast as
element by element.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache

NUMBERS = {"int4": ("i", 4, 23), "float4": ("f", 4, 700), "float8": ("d", 8, 701)}
"""Type to (code of struct, bytes, oid)."""
TEXT_OID = 25

_HEADER = struct.Struct(">iiiii")
_EMPTY = struct.Struct(">iii")


@lru_cache(maxsize=512)
def _packer(code: str, count: int) -> struct.Struct:
    return struct.Struct(">iiiii" + f"i{code}" * count)


def pack_numbers(kind: str, values: Sequence[float]) -> bytes:
    """An array of NUMBERS' type `kind`."""
    code, size, oid = NUMBERS[kind]
    if not values:
        return _EMPTY.pack(0, 0, oid)
    pairs: list[float] = [size] * (2 * len(values))
    pairs[1::2] = values
    return _packer(code, len(values)).pack(1, 0, oid, len(values), 1, *pairs)


def pack_texts(values: Sequence[str]) -> bytes:
    """An array of texts."""
    if not values:
        return _EMPTY.pack(0, 0, TEXT_OID)
    return _HEADER.pack(1, 0, TEXT_OID, len(values), 1) + b"".join(map(_pack_text, values))


@lru_cache(maxsize=1 << 16)  # texts are those of tokens: few, and often again
def _pack_text(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(4) + data
