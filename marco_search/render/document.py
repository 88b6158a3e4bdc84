"""One job as a JSON document: what `marco show --format json` prints.

The shape is described in docs/console.md. The console's page and the self-contained file
read the same document; the page leaves `tokens` out and asks for those of one node.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from marco_search.audit.findings import JobReport
from marco_search.render.labels import label
from marco_search.render.layout import places
from marco_search.render.vocabulary import Vocabulary
from marco_search.store.reads.job_record import AttemptRow, JobRecord, NodeTokens

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

FORMAT, VERSION = "marco-search/job", 1
_DIGITS = 5  # of a confidence; more would only make the file longer


def document(
    record: JobRecord,
    tokens: Mapping[int, NodeTokens] | None = None,
    vocabulary: Vocabulary | None = None,
    verified: JobReport | None = None,
) -> dict[str, Any]:
    """The whole record as values that JSON has; `tokens` by node id, if wanted."""
    winning = record.winning_path
    data: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "job": record.job.model_dump(mode="json"),
        "answers": [
            answer.model_dump(mode="json")
            | {"rollouts": [rollout.rollout_id for rollout in record.reaching(answer)]}
            for answer in record.answers
        ],
        "winning_path": list(winning),
        "nodes": nodes_json(record),
        "rollouts": [_plain(rollout) for rollout in record.rollouts],
        "attempts": [attempt_json(attempt) for attempt in record.attempts],
        "audit_log": [_plain(event) | {"at": event.at.isoformat()} for event in record.events],
    }
    data["verification"] = verified and verification_json(verified)
    if tokens is not None:
        known = vocabulary or Vocabulary(tokens.values())
        data["tokens"] = {str(i): tokens_json(row) for i, row in tokens.items()}
        data["vocabulary"] = vocabulary_json(tokens.values(), known)
    return data


def nodes_json(record: JobRecord) -> list[dict[str, Any]]:
    """The nodes with their label and their place in the drawing."""
    place = places(record.nodes, frozenset(record.winning_path))
    return [
        _plain(node) | {"label": label(node.action, node.text)} | _plain(place[node.node_id])
        for node in record.nodes
        if node.node_id in place
    ]


def _plain(row: DataclassInstance) -> dict[str, Any]:
    """The fields of a row: as asdict, without copying what is in them."""
    return {field.name: getattr(row, field.name) for field in fields(row)}


def verification_json(report: JobReport) -> dict[str, Any]:
    """What checking the job against the chain gave; findings in words, the first to look at."""
    return {
        "status": str(report.status),
        "seq": report.seq,
        "root": report.root,
        "findings": [str(finding) for finding in report.findings],
    }


def attempt_json(attempt: AttemptRow) -> dict[str, Any]:
    """One claim with the configuration it ran under."""
    return _plain(attempt) | {"started_at": attempt.started_at.isoformat()}


def tokens_json(row: NodeTokens) -> dict[str, Any]:
    """The tokens of a node by column; of candidates there are five for each token in turn."""
    return {
        "ids": row.token_ids,
        "texts": row.token_texts,
        "logprobs": [round(p, _DIGITS) for p in row.logprobs],
        "confidences": [round(c, _DIGITS) for c in row.confidences],
        "top_ids": row.top_ids,
        "top_probabilities": [round(math.exp(p), _DIGITS) for p in row.top_logprobs],
    }


def vocabulary_json(rows: Iterable[NodeTokens], vocabulary: Vocabulary) -> dict[str, str]:
    """The texts of all candidates in `rows` that are known, by token id."""
    ids = sorted({i for row in rows for i in row.top_ids})
    return {str(i): text for i in ids if (text := vocabulary.text(i)) is not None}
