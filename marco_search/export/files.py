"""Files that appear whole or not at all: JSON Lines, and Parquet a group of rows at a time."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from marco_search.errors import InputError

Rows = Iterable[Sequence[tuple[Any, ...]]]
"""Rows, some at a time: memory does not grow with the size of a file."""


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to; at the end it becomes `path`, in one step. Nothing stays on an error.

    Raises InputError if the folder can't be written to.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}; name a folder that can be written to"
        ) from None
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def digest(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_lines(path: Path, lines: Iterable[str]) -> int:
    """Write lines of text; how many there were."""
    count = 0
    with whole(path) as part, part.open("w", encoding="utf-8", errors="replace") as file:
        for line in lines:
            file.write(line + "\n")
            count += 1
    return count


def write_jsonl(path: Path, columns: Mapping[str, str], batches: Rows) -> int:
    """Write one object for each row; how many there were. `columns`: name to Postgres type."""
    return write_lines(path, (_json_line(columns, row) for rows in batches for row in rows))


def _json_line(columns: Mapping[str, str], row: Sequence[Any]) -> str:
    pairs = zip(columns.items(), row, strict=True)
    line = {name: _json_value(value, kind) for (name, kind), value in pairs}
    return json.dumps(line, ensure_ascii=False, allow_nan=False)


def _json_value(value: Any, kind: str) -> Any:
    if value is None:
        return None
    if kind == "jsonb":
        return json.loads(value, parse_float=lambda text: _finite(float(text)))
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if kind in ("float4[]", "float8[]"):
        return [_finite(x) for x in value]
    return _finite(value) if isinstance(value, float) else value


def _finite(value: float) -> float | None:
    """JSON has no infinities, such as the log-prob of a missing candidate, and no NaN."""
    return value if math.isfinite(value) else None


_ARROW = {
    "int2": "int16", "int4": "int32", "int8": "int64", "float4": "float32", "float8": "float64",
    "text": "string", "jsonb": "string", "uuid": "string", "bool": "bool", "bytea": "binary",
}  # fmt: skip
"""Arrow's names of Postgres' types."""


def write_parquet(path: Path, columns: Mapping[str, str], batches: Rows) -> int:
    """Write a file with these rows; how many there were. `columns`: name to Postgres type."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def arrow(kind: str) -> Any:
        if kind.endswith("[]"):
            return pa.list_(arrow(kind[:-2]))
        moment = kind == "timestamptz"
        return pa.timestamp("us", tz="UTC") if moment else pa.type_for_alias(_ARROW[kind])

    shape, count = pa.schema([(name, arrow(kind)) for name, kind in columns.items()]), 0
    with whole(path) as part, pq.ParquetWriter(part, shape, compression="zstd") as writer:
        for rows in batches:
            arrays = [
                pa.array(values, type=field.type)
                for values, field in zip(zip(*rows, strict=True), shape, strict=True)
            ]
            writer.write_batch(pa.record_batch(arrays, schema=shape))
            count += len(rows)
    return count
