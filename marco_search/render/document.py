"""One job as a JSON document: what `marco show --format json` prints.

The shape is described in docs/console.md. The console's page and the self-contained file
read it with the nodes as they are drawn; the page asks for the tokens of one node.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from marco_search.audit.findings import JobReport
from marco_search.render.layout import instead, joined
from marco_search.store.reads.job_record import JobRecord, NodeTokens

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

FORMAT, VERSION = "marco-search/job", 2
_DIGITS = 5  # of a confidence; more would only make the file longer


def document(
    record: JobRecord,
    tokens: Mapping[int, NodeTokens] | None = None,
    verified: JobReport | None = None,
) -> dict[str, Any]:
    """The whole record as values that JSON has; `tokens` by node id, if wanted."""
    data: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "job": record.job.model_dump(mode="json"),
        "answers": [
            answer.model_dump(mode="json")
            | {"rollouts": [rollout.rollout_id for rollout in record.reaching(answer)]}
            | {"best_rollout": best}
            for answer, best in zip(record.answers, record.best_rollouts, strict=True)
        ],
        "winning_path": list(record.winning_path),
        "nodes": [_plain(node) for node in record.nodes],
        "rollouts": [_plain(rollout) for rollout in record.rollouts],
        "attempts": [
            _plain(attempt) | {"started_at": attempt.started_at.isoformat()}
            for attempt in record.attempts
        ],
        "audit_log": [_plain(event) | {"at": event.at.isoformat()} for event in record.events],
        "verification": verified
        and {
            "status": str(verified.status),
            "seq": verified.seq,
            "root": verified.root,
            "findings": [str(finding) for finding in verified.findings],
        },
    }
    if tokens is not None:
        data["tokens"] = {str(i): tokens_json(row) for i, row in tokens.items()}
        data["vocabulary"] = vocabulary_json(tokens.values())
    return data


def cards(record: JobRecord) -> list[dict[str, Any]]:
    """The nodes as they are drawn: joined, with the ids in each (`parts`) and its fork in words."""
    found = joined(record.nodes)
    parts: dict[int, list[int]] = {}
    for node_id, card in found.items():
        parts.setdefault(card.node_id, []).append(node_id)
    return [
        _plain(card := found[last]) | {"parts": ids, "instead": card.fork and instead(card.fork)}
        for last, ids in sorted(parts.items())
    ]


def _plain(row: DataclassInstance) -> dict[str, Any]:
    """The fields of a row: as asdict, without copying what is in them."""
    return {field.name: getattr(row, field.name) for field in fields(row)}


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


def vocabulary_json(rows: Collection[NodeTokens]) -> dict[str, str]:
    """The texts of the candidates in `rows` by token id, as far as these rows have them."""
    texts: dict[int, str] = {}
    for row in rows:
        # "" is a part of a character; the token's text elsewhere is better.
        texts |= {i: t for i, t in zip(row.token_ids, row.token_texts, strict=True) if t}
    for row in rows:
        texts |= {i: t for i, t in zip(row.top_ids, row.top_texts, strict=True) if t}
    return {
        str(i): texts[i] for i in sorted({i for row in rows for i in row.top_ids} & texts.keys())
    }
