"""Parquet: written a group of rows at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from marco_search.export.files import Rows, whole

_TYPES: dict[str, Any] = {
    "bool": pa.bool_(),
    "int2": pa.int16(),
    "int4": pa.int32(),
    "int8": pa.int64(),
    "float4": pa.float32(),
    "float8": pa.float64(),
    "text": pa.string(),
    "jsonb": pa.string(),
    "uuid": pa.string(),
    "bytea": pa.binary(),
    "timestamptz": pa.timestamp("us", tz="UTC"),
}


def write(path: Path, columns: Mapping[str, str], batches: Rows) -> int:
    """Write a file with these rows; how many there were. `columns`: name to Postgres type."""
    shape, count = pa.schema([(name, _type(kind)) for name, kind in columns.items()]), 0
    with whole(path) as part, pq.ParquetWriter(part, shape, compression="zstd") as writer:
        for rows in batches:
            arrays = [
                pa.array(values, type=field.type)
                for values, field in zip(zip(*rows, strict=True), shape, strict=True)
            ]
            writer.write_batch(pa.record_batch(arrays, schema=shape))
            count += len(rows)
    return count


def _type(kind: str) -> Any:
    return pa.list_(_TYPES[kind[:-2]]) if kind.endswith("[]") else _TYPES[kind]
