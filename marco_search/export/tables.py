"""The tables that are exported: their columns, and the rows of some jobs as a stream.

From the views of the schema `audit`, so that an auditor exports what it may see.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from marco_search.export.filters import Filter
from marco_search.store.db import Conn

_ROWS_AT_ONCE = 1000
"""Some 3 MB of nodes: what is held in memory at a time."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its SQL, its Arrow type, and whether it holds what people or models wrote."""

    sql: str
    type: str  # of pyarrow; "list<...>" is a list of it; "json" a string that is JSON
    text: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table: `t` is its own row, `j` the job's."""

    source: str
    order: str
    columns: dict[str, Column]
    where: str = "{}"  # around the condition on `j`

    def chosen(self, *, text: bool) -> dict[str, Column]:
        """The columns to export."""
        return {n: c for n, c in self.columns.items() if text or not c.text}


def _own(**types: str) -> dict[str, Column]:
    return {name: Column(f"t.{name}", kind) for name, kind in types.items()}


def _text(*names: str, kind: str = "string") -> dict[str, Column]:
    return {name: Column(f"t.{name}", kind, text=True) for name in names}


_JOB = {"job_id": Column("j.job_id::text", "string")}
_OF_JOB = " JOIN audit.jobs AS j ON j.job_id = t.job_id"

TABLES = {
    "jobs": Table(
        "audit.jobs AS j CROSS JOIN LATERAL (SELECT j.*) AS t",
        "j.job_id",
        _JOB
        | {"batch_id": Column("j.batch_id::text", "string")}
        | _own(tenant="string", kind="string", state="string", priority="int16")
        | {
            "payload": Column("j.payload::text", "json", text=True),
            "config": Column("j.config::text", "json"),
        }
        | _text("subject", "expected", "answer", "error")
        | _own(strategy="string", model="string", revision="string", error_type="string")
        | _own(idempotency_key="string", payload_hash="string")
        | _own(confidence="float64", correct="bool", stop_reason="string", attempts="int32")
        | _own(rounds="int32", rollouts="int32", nodes="int32", generated_tokens="int64")
        | _own(prompt_tokens="int64", cached_tokens="int64", seconds="float64")
        | _own(created_at="time", started_at="time", finished_at="time")
        | {
            "root": Column(
                "(SELECT c.root FROM audit.chain AS c WHERE c.job_id = j.job_id"
                " ORDER BY c.seq DESC LIMIT 1)",
                "string",
            )
        },
    ),
    "attempts": Table(
        "audit.attempts AS t" + _OF_JOB,
        "t.job_id, t.generation",
        _JOB
        | _own(generation="int64", worker="string", host="string", pid="int32")
        | _own(runtime="string", runtime_version="string", model="string", revision="string")
        | {"config": Column("t.config::text", "json")}
        | _text("prompt")
        | _own(seed="int32", started_at="time"),
    ),
    "answers": Table(
        "audit.answers AS t" + _OF_JOB,
        "t.job_id, t.rank",
        _JOB
        | _own(rank="int32", generation="int64")
        | _text("key", "text", "output", "thought")
        | _own(confidence="float64", votes="int32", share="float64")
        | {"rollout_ids": Column("t.rollout_ids", "list<int32>")}
        | _own(created_at="time"),
    ),
    "rollouts": Table(
        "audit.rollouts AS t" + _OF_JOB,
        "t.job_id, t.rollout_id",
        _JOB
        | _own(rollout_id="int32", generation="int64", round="int32", start_id="int32")
        | {"path": Column("t.path", "list<int32>")}
        | _own(seed="int32", reflect="string", finish="string", confidence="float64")
        | _own(path_confidence="float64", value="float64")
        | _text("answer", "error")
        | _own(generated_tokens="int32", prompt_tokens="int32", cached_tokens="int32")
        | _own(seconds="float64", created_at="time"),
    ),
    "nodes": Table(
        "audit.nodes AS t" + _OF_JOB,
        "t.job_id, t.node_id",
        _JOB
        | _own(node_id="int32", parent_id="int32", generation="int64", round="int32")
        | _own(depth="int32", action="string", terminal="bool")
        | _text("text")
        | {"token_ids": Column("t.token_ids", "list<int32>", text=True)}
        | {"token_texts": Column("t.token_texts", "list<string>", text=True)}
        | {"logprobs": Column("t.logprobs", "list<float32>")}
        | {"confidences": Column("t.confidences", "list<float64>")}
        | {"top_ids": Column("t.top_ids", "list<int32>", text=True)}
        | {"top_logprobs": Column("t.top_logprobs", "list<float32>")}
        | _own(created_at="time"),
    ),
    "tokens": Table(
        "audit.nodes AS n JOIN audit.jobs AS j ON j.job_id = n.job_id CROSS JOIN LATERAL"
        " unnest(n.token_ids, n.token_texts, n.logprobs, n.confidences)"
        " WITH ORDINALITY AS t (token_id, text, logprob, confidence, place)",
        "n.job_id, n.node_id, t.place",
        _JOB
        | {
            "node_id": Column("n.node_id", "int32"),
            "place": Column("t.place::int", "int32"),
            "token_id": Column("t.token_id", "int32", text=True),
            "text": Column("t.text", "string", text=True),
            "logprob": Column("t.logprob", "float32"),
            "confidence": Column("t.confidence", "float64"),
            "top_ids": Column("n.top_ids[5 * t.place - 4 : 5 * t.place]", "list<int32>", text=True),
            "top_logprobs": Column(
                "n.top_logprobs[5 * t.place - 4 : 5 * t.place]", "list<float32>"
            ),
        },
    ),
    "vocabulary": Table(
        "audit.vocabulary AS t",
        "t.model, t.revision, t.token_id",
        _own(model="string", revision="string", token_id="int32") | _text("text"),
        "(t.model, t.revision) IN (SELECT j.model, j.revision FROM audit.jobs AS j WHERE {})",
    ),
}
"""By name. Token ids are text, too: whoever has the tokenizer can read them."""


def stream(
    conn: Conn, name: str, chosen: Filter, *, text: bool = True
) -> Iterator[list[tuple[Any, ...]]]:
    """The rows of a table, some at a time, in order of job and key."""
    table = TABLES[name]
    columns = ", ".join(column.sql for column in table.chosen(text=text).values())
    condition, values = chosen.condition()
    where = table.where.format(condition)
    query = f"SELECT {columns} FROM {table.source} WHERE {where} ORDER BY {table.order}"  # noqa: S608
    with conn.cursor(f"export_{name}", binary=True) as cursor:
        cursor.execute(query.encode(), values)
        while rows := cursor.fetchmany(_ROWS_AT_ONCE):
            yield rows
