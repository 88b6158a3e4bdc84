"""The tables that are exported, and the rows of some jobs as files.

From the views of the schema `audit`, so that an auditor exports what it may see. Files appear whole
or not at all: JSON Lines, and Parquet a group of rows at a time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from marco_search import schema
from marco_search.files import whole, write_lines
from marco_search.store.db import Conn
from marco_search.store.queue.jobs import OF_BATCH

Rows = Iterable[Sequence[tuple[Any, ...]]]
"""Rows, some at a time: memory does not grow with the size of a file."""
_ROWS_AT_ONCE = 1000
"""Some 3 MB of nodes: what is held in memory at a time."""
_ARROW = {
    "int2": "int16", "int4": "int32", "int8": "int64", "float4": "float32", "float8": "float64",
    "text": "string", "jsonb": "string", "uuid": "string", "bool": "bool", "bytea": "binary",
}  # fmt: skip
"""Arrow's names of Postgres' types."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Conditions on jobs; None and empty ones do not count."""

    jobs: list[UUID] = field(default_factory=list)
    batch: UUID | None = None
    tenant: str | None = None
    since: datetime | None = None  #: submitted at or after
    until: datetime | None = None  #: submitted before
    strategy: str | None = None  #: how it was searched
    model: str | None = None
    revision: str | None = None  #: of the model, or how it begins

    def condition(self) -> tuple[str, dict[str, Any]]:
        """SQL about a row `j` of audit.jobs, and its parameters."""
        values = {name: getattr(self, name) for name in _CONDITIONS if getattr(self, name)}
        return " AND ".join(["true", *(_CONDITIONS[name] for name in values)]), values


_CONDITIONS = {
    "jobs": "j.job_id = ANY (%(jobs)s)",
    "batch": f"j.job_id = {OF_BATCH}",
    "tenant": "j.tenant = %(tenant)s",
    "since": "j.created_at >= %(since)s",
    "until": "j.created_at < %(until)s",
    "strategy": "j.config ->> 'strategy' = %(strategy)s",
    "model": "j.model = %(model)s",
    "revision": "starts_with(j.revision, %(revision)s)",
}
_CONTENT = {
    column.name
    for table in schema.TABLES.values()
    for column in table.columns.values()
    if column.content
} | {"subject", "token_id"}
"""Columns with what people or models wrote. Token ids count: a tokenizer can read them."""


class Table:
    """A table: `t` is its own row, `j` the job's. Column types are those that Postgres reports."""

    def __init__(
        self, source: str, order: str, columns: str, *, where: str = "{}", **sql: str
    ) -> None:
        """`columns`: names in order, columns of `t` unless `sql` has another expression.
        `where` is put around the condition on `j`."""
        self.source, self.order, self.where = source, order, where
        self._columns = {name: sql.get(name, f"t.{name}") for name in columns.split()}

    def columns(self, *, text: bool) -> dict[str, str]:
        """Name to SQL of the columns to export."""
        return {n: sql for n, sql in self._columns.items() if text or n not in _CONTENT}


def _stored(table: schema.Table) -> Table:
    """A table with all its columns."""
    return Table(
        f"audit.{table.name} AS t JOIN audit.jobs AS j ON j.job_id = t.job_id",
        ", ".join(f"t.{column.name}" for column in table.columns.values() if column.key),
        " ".join(table.columns),
    )


TABLES = {
    "jobs": Table(
        "audit.jobs AS j CROSS JOIN LATERAL (SELECT j.*) AS t",
        "j.job_id",
        "job_id batch_id batch_line custom_id tenant kind state priority payload config subject"
        " expected answer error strategy model revision error_type idempotency_key payload_hash"
        " confidence correct stop_reason attempts rounds rollouts nodes generated_tokens"
        " prompt_tokens cached_tokens seconds created_at started_at finished_at root",
        root="(SELECT c.root FROM audit.chain AS c WHERE c.job_id = j.job_id"
        " ORDER BY c.seq DESC LIMIT 1)",
    ),
    "attempts": _stored(schema.ATTEMPTS),
    "answers": _stored(schema.ANSWERS),
    "rollouts": _stored(schema.ROLLOUTS),
    "nodes": _stored(schema.NODES),
    "tokens": Table(
        "audit.nodes AS n JOIN audit.jobs AS j ON j.job_id = n.job_id CROSS JOIN LATERAL"
        " unnest(n.token_ids, n.token_texts, n.logprobs, n.confidences)"
        " WITH ORDINALITY AS t (token_id, text, logprob, confidence, place)",
        "n.job_id, n.node_id, t.place",
        "job_id node_id place token_id text logprob confidence top_ids top_logprobs",
        job_id="j.job_id",
        node_id="n.node_id",
        place="t.place::int",
        top_ids="n.top_ids[5 * t.place - 4 : 5 * t.place]",
        top_logprobs="n.top_logprobs[5 * t.place - 4 : 5 * t.place]",
    ),
    "vocabulary": Table(
        "audit.vocabulary AS t",
        "t.model, t.revision, t.token_id",
        "model revision token_id text",
        where="(t.model, t.revision) IN (SELECT j.model, j.revision FROM audit.jobs AS j WHERE {})",
    ),
}


def write(
    conn: Conn, path: Path, name: str, chosen: Filter, *, file_format: str, text: bool = True
) -> int:
    """Write a table of some jobs as "jsonl" or "parquet", by job and key; how many rows."""
    table = TABLES[name]
    columns = table.columns(text=text)
    types = _types(conn, columns, table.source)
    condition, values = chosen.condition()
    where = table.where.format(condition)
    rows = stream(
        conn, columns, types, f"{table.source} WHERE {where} ORDER BY {table.order}", values
    )
    return (write_jsonl if file_format == "jsonl" else write_parquet)(path, types, rows)


def _types(conn: Conn, columns: dict[str, str], source: str) -> dict[str, str]:
    """The Postgres type of each column, such as int4[]."""
    query = f"SELECT {', '.join(columns.values())} FROM {source} LIMIT 0"  # noqa: S608
    found = {}
    for name, column in zip(columns, conn.execute(query.encode()).description or (), strict=True):
        info = conn.adapters.types[column.type_code]
        found[name] = info.name + ("[]" if column.type_code == info.array_oid else "")
    return found


def stream(
    conn: Conn, columns: dict[str, str], types: dict[str, str], rest: str, values: Any
) -> Iterator[list[tuple[Any, ...]]]:
    """Rows with these columns (name to SQL), some at a time. `rest`: what follows FROM."""
    chosen = (
        f"{sql}::text" if types[name] in ("jsonb", "uuid") else sql for name, sql in columns.items()
    )
    query = f"SELECT {', '.join(chosen)} FROM {rest}"  # noqa: S608
    with conn.cursor("export", binary=True) as cursor:
        cursor.execute(query.encode(), values)
        while rows := cursor.fetchmany(_ROWS_AT_ONCE):
            yield rows
