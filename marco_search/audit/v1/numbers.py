"""Whether the rows of one job agree with each other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any
from uuid import UUID

from marco_search.audit.evidence import Rows
from marco_search.audit.findings import Finding
from marco_search.audit.v1.columns import KINDS
from marco_search.audit.v1.job import check_attempts, check_totals
from marco_search.audit.v1.nodes import ROUNDING, Grown, check_nodes
from marco_search.audit.v1.rollouts import check_rollouts
from marco_search.audit.v1.rows import UNREADABLE, read_answer, read_node, read_rollout
from marco_search.audit.v1.votes import check_answers

_READERS = {"node": read_node, "rollout": read_rollout, "answer": read_answer}
Visits = Mapping[int, tuple[int, float]]
"""Visit count and value by node."""


def check_numbers(
    job_id: UUID, job: dict[str, Any], rows: Rows, visits: Visits | None
) -> Iterator[Finding]:
    """What does not agree. `job`: request and outcome by column; `visits`: as the view shows."""
    plan = json.loads(job["plan"]) if job["plan"] else None
    config = plan["config"] if plan else {}
    read: dict[str, list[Any]] = {}
    for kind, reader in _READERS.items():
        read[kind] = []
        for key, row in rows.get(kind, ()):
            try:
                read[kind].append(reader(row))
            except UNREADABLE as error:
                spec = KINDS[kind]
                name = f"job {job_id}, {spec.key} {key}"
                yield Finding(spec.table, name, "not readable", "a row", str(error), job_id)
                return
    yield from check_attempts(job_id, plan, [row for _, row in rows.get("attempt", ())])
    tree, found = check_nodes(job_id, read["node"])
    yield from found
    if len(tree.parents) <= len(read["node"]):
        return  # the rest hangs in the air
    seed, value = config.get("seed"), config.get("value", "path")
    yield from check_rollouts(job_id, tree, read["rollout"], seed=seed, value=value)
    yield from _check_visits(job_id, tree, visits)
    payload = json.loads(job["payload"])
    yield from check_answers(job_id, job, payload, config, read["rollout"], read["answer"])
    yield from check_totals(job_id, job, len(read["node"]), read["rollout"], read["answer"])


def _check_visits(job_id: UUID, tree: Grown, shown: Visits | None) -> Iterator[Finding]:
    if shown is None:
        return
    for node_id in sorted(tree.visits.keys() | shown.keys()):
        visits, value = shown.get(node_id, (0, 0.0))
        expected = tree.visits.get(node_id, 0)
        mean = tree.values.get(node_id, 0.0) / expected if expected else 0.0
        if visits != expected or not abs(value - mean) <= ROUNDING:
            key = f"job {job_id}, node_id {node_id}"
            there = f"{visits} with value {value:.9g}"
            yield Finding(
                "node_stats", key, "visits", f"{expected} with value {mean:.9g}", there, job_id
            )
