"""Inputs near to valid ones: a seed with some of its JSON or of its bytes changed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from hypothesis import strategies as st

_ODD: list[Any] = [
    None, True, False, 0, -1, 0.5, -0.0, 1e308, float("nan"), float("inf"), 2**31, 2**63, 2**64,
    10**400, "", " ", "\0", "\ud800", "\u202e", "1", "-1", "1e999", "a" * 5_000, [], {}, [[]],
    {"": None}, [None] * 100,
]  # fmt: skip
_PIECES = [
    b"\0", b"\xff", b"\xef\xbb\xbf", b"\r\n", b"\n", b"\\", b'"', b"'", b"{", b"}", b"[", b"(",
    b",", b"1e999", b"NaN", b"9" * 5_000, b"[" * 3_000, b"((((" * 200, b"\\frac{" * 200, b"^" * 300,
    b"{{", b"{%", "一亿".encode() * 100, b"1/0", b"\xe2\x80\xae", b"\xed\xa0\x80",
]  # fmt: skip
Path = tuple[Any, ...]


def near(seeds: Sequence[bytes], largest: int = 2**16) -> st.SearchStrategy[bytes]:
    """Changed seeds of at most `largest` bytes; what is JSON is changed as such, and as bytes."""
    values = []
    for seed in seeds:
        with contextlib.suppress(ValueError, RecursionError):
            values.append(json.loads(seed))
    kinds = [_bytes(seeds), st.binary(max_size=200), st.text(max_size=200).map(_encoded)]
    if values:
        changed = _json(values)
        kinds += [changed, changed.flatmap(lambda seed: _bytes([seed]))]
    return st.one_of(kinds).map(lambda data: data[:largest])


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


@st.composite
def _json(draw: st.DrawFn, values: Sequence[Any]) -> bytes:
    value = draw(st.sampled_from(values))
    for _ in range(draw(st.integers(1, 3))):
        new = _replaced(value, draw(st.sampled_from([*_paths(value)])), draw)
        value = None if new is _GONE else new
    return _encoded(json.dumps(value, ensure_ascii=draw(st.booleans())))


def _paths(value: Any, at: Path = ()) -> Iterator[Path]:
    yield at
    for name, entry in _entries(value):
        yield from _paths(entry, (*at, name))


def _entries(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, dict):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list) else []


def _replaced(value: Any, path: Path, draw: st.DrawFn) -> Any:
    if path:
        name, *rest = path
        made = _replaced(value[name], tuple(rest), draw)
        changed = {k: made if k == name else v for k, v in _entries(value)}
        left = {k: v for k, v in changed.items() if k != name or v is not _GONE}
        return left if isinstance(value, dict) else list(left.values())
    kind = draw(st.sampled_from(["odd", "number", "text", "gone", "more", "nested"]))
    if kind == "more" and isinstance(value, dict):
        return value | {draw(st.text(max_size=8)): draw(st.sampled_from(_ODD))}
    if kind == "more" and isinstance(value, list):
        return value * draw(st.sampled_from([2, 3, 50]))
    if kind == "nested":
        return [value] if draw(st.booleans()) else {"a": value}
    if kind == "number":
        return draw(st.integers() | st.floats())
    if kind == "text":
        return draw(st.text(max_size=30))
    return _GONE if kind == "gone" else draw(st.sampled_from(_ODD))


_GONE = object()


@st.composite
def _bytes(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 4))):
        at, size = draw(st.integers(0, len(data))), draw(st.sampled_from([0, 1, 2, 4, 8, 64]))
        part = data[at : at + size]
        new = draw(
            st.sampled_from(_PIECES)
            | st.binary(min_size=size, max_size=size)
            | st.sampled_from([b"", part * 2, part * 300, data[:size]])
        )
        data = data[:at] + new + data[at + size :]
    return data
