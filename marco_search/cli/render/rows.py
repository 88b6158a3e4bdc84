"""Rows of a query as a table, as CSV, and as JSON objects."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from rich.table import Table

from marco_search.cli.query import JsonText
from marco_search.cli.render.tables import Column, text_table
from marco_search.cli.render.text import one_line

_MOST_DIGITS = 4300  # of a whole number that Python writes


def rows_table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], *, width: int | None = None
) -> Table:
    """Numbers to the right, text on one line, NULL as an empty cell."""
    numeric = [_is_numeric([row[i] for row in rows]) for i in range(len(columns))]
    headings = [
        Column(one_line(name), "right" if right else "left", flexible=not right)
        for name, right in zip(columns, numeric, strict=True)
    ]
    return text_table(headings, [[_cell(value) for value in row] for row in rows], width=width)


def rows_csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """CSV with a line of headings; arrays are JSON inside their field.

    NULL is an empty field, empty text is "". What is between quotes is the text as it is stored.
    """
    lines = [[_quoted(name) for name in columns]]
    lines += [["" if v is None else _quoted(_field(v)) for v in row] for row in rows]
    return "".join(",".join(line) + "\n" for line in lines)


def _quoted(field: str) -> str:
    # The csv module leaves a carriage return bare, where other readers end the line.
    special = not field or any(character in field for character in ',"\r\n')
    return '"' + field.replace('"', '""') + '"' if special else field


def rows_json(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """One object for each row."""
    return [{name: plain(value) for name, value in zip(columns, row, strict=True)} for row in rows]


def plain(value: Any) -> Any:
    """A value from Postgres as JSON has it; what JSON lacks becomes text."""
    if isinstance(value, JsonText):
        return _parsed(value)
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)  # JSON has no NaN
    if isinstance(value, Decimal):
        return _number(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, bytes | memoryview):
        return bytes(value).hex()
    return str(value)


def _parsed(value: JsonText) -> Any:
    try:
        return plain(json.loads(value))
    except (ValueError, RecursionError):  # more digits or levels than Python takes
        return str(value)


def _number(value: Decimal) -> int | float | str:
    if not value.is_finite():
        return str(value)
    if value == value.to_integral_value() and value.adjusted() < _MOST_DIGITS:
        return int(value)
    return float(value) if math.isfinite(float(value)) else str(value)


def _is_numeric(values: Sequence[Any]) -> bool:
    known = [value for value in values if value is not None]
    return bool(known) and all(
        isinstance(value, int | float | Decimal) and not isinstance(value, bool) for value in known
    )


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="seconds")
    return one_line(_field(value))


def _field(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list | tuple | dict):
        return json.dumps(plain(value), ensure_ascii=False)
    if isinstance(value, bytes | memoryview):
        return bytes(value).hex()
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value)
