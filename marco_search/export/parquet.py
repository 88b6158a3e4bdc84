"""Parquet: one file for each table, written a group of rows at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from marco_search.export.files import whole
from marco_search.export.tables import Column

_TYPES: dict[str, Any] = {
    "string": pa.string(),
    "json": pa.string(),
    "bool": pa.bool_(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "binary": pa.binary(),
    "time": pa.timestamp("us", tz="UTC"),
}


def schema(columns: Mapping[str, Column], notes: Mapping[str, str] | None = None) -> Any:
    """The Arrow schema of these columns, with notes in its metadata."""
    return pa.schema([(name, _type(c.type)) for name, c in columns.items()], metadata=notes)


def _type(name: str) -> Any:
    if name.startswith("list<"):
        return pa.list_(_TYPES[name.removeprefix("list<").removesuffix(">")])
    return _TYPES[name]


def write(
    path: Path,
    columns: Mapping[str, Column],
    batches: Iterable[Sequence[tuple[Any, ...]]],
    notes: Mapping[str, str] | None = None,
) -> int:
    """Write a file with these rows; how many there were."""
    shape, count = schema(columns, notes), 0
    with whole(path) as part, pq.ParquetWriter(part, shape, compression="zstd") as writer:
        for rows in batches:
            arrays = [
                pa.array(values, type=field.type)
                for values, field in zip(zip(*rows, strict=True), shape, strict=True)
            ]
            writer.write_batch(pa.record_batch(arrays, schema=shape))
            count += len(rows)
    return count
