"""Rows of a query as a table, as CSV, and as JSON objects."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from rich.console import RenderableType

from marco_search.cli.tables import Column, text_table
from marco_search.render.layout import one_line
from marco_search.store.reads.reader_sql import JsonText

_MOST_DIGITS = 4300  # of a whole number that Python writes
Rows = Sequence[Sequence[Any]]


def rows_table(columns: Sequence[str], rows: Rows, *, width: int | None = None) -> RenderableType:
    """Numbers to the right, text on one line, NULL as an empty cell."""
    numeric = [_is_numeric([row[i] for row in rows]) for i in range(len(columns))]
    headings = [
        Column(one_line(name), "right" if right else "left", flexible=not right)
        for name, right in zip(columns, numeric, strict=True)
    ]
    return text_table(headings, [[_cell(value) for value in row] for row in rows], width=width)


def rows_csv(columns: Sequence[str], rows: Rows) -> str:
    """CSV with a line of headings; arrays are JSON inside their field.

    NULL is an empty field, empty text is "". What is between quotes is the text as it is stored.
    """
    lines = [[_quoted(name) for name in columns]]
    lines += [["" if value is None else _quoted(_field(value)) for value in row] for row in rows]
    return "".join(",".join(line) + "\n" for line in lines)


def rows_json(columns: Sequence[str], rows: Rows) -> list[dict[str, Any]]:
    """One object for each row."""
    return [
        {name: as_json(value) for name, value in zip(columns, row, strict=True)} for row in rows
    ]


def as_json(value: Any) -> Any:
    """A value from Postgres as JSON has it; what JSON lacks becomes text."""
    match value:
        case JsonText():
            try:
                return as_json(json.loads(value))
            except (ValueError, RecursionError):  # more digits or levels than Python takes
                return str(value)
        case None | str() | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else str(value)  # JSON has no NaN
        case Decimal():
            return _number(value)
        case datetime():
            return value.isoformat()
        case list() | tuple():
            return [as_json(item) for item in value]
        case dict():
            return {str(name): as_json(item) for name, item in value.items()}
        case bytes() | memoryview():
            return bytes(value).hex()
        case _:
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
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.6g}"
        case datetime():
            return value.isoformat(sep=" ", timespec="seconds")
        case _:
            return one_line(_field(value))


def _field(value: Any) -> str:
    plain = str(value) if isinstance(value, Decimal | JsonText) else as_json(value)
    return json.dumps(plain, ensure_ascii=False) if isinstance(plain, list | dict) else str(plain)


def _quoted(field: str) -> str:
    # The csv module leaves a carriage return bare, where other readers end the line.
    special = not field or any(character in field for character in ',"\r\n')
    return '"' + field.replace('"', '""') + '"' if special else field
