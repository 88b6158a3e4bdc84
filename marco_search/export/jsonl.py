"""JSON Lines: one object for each row."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from marco_search.export.files import whole
from marco_search.export.tables import Column


def write(
    path: Path, columns: Mapping[str, Column], batches: Iterable[Sequence[tuple[Any, ...]]]
) -> int:
    """Write a file with these rows; how many there were."""
    count = 0
    with whole(path) as part, part.open("w", encoding="utf-8", newline="\n") as file:
        for rows in batches:
            for row in rows:
                pairs = zip(columns.items(), row, strict=True)
                line = {name: _plain(value, column.type) for (name, column), value in pairs}
                file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
            count += len(rows)
    return count


def _plain(value: Any, kind: str) -> Any:
    if value is None:
        return None
    if kind == "json":
        return json.loads(value, parse_float=lambda text: _finite(float(text)))
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if kind.startswith("list<float"):
        return [_finite(x) for x in value]
    return _finite(value) if isinstance(value, float) else value


def _finite(value: float) -> float | None:
    """JSON has no word for infinities, such as the log-prob of a missing candidate, and NaN."""
    return value if math.isfinite(value) else None
