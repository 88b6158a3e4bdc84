"""Whether the rows of one job agree with each other."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from marco_search.audit.canonical import unpack_ints
from marco_search.audit.findings import Finding
from marco_search.audit.proofs import Kinds, Rows
from marco_search.audit.v1.nodes import ROUNDING, check_nodes, score_tokens, unpack_tokens
from marco_search.audit.v1.rollouts import backed_up, check_rollouts
from marco_search.audit.v1.votes import check_answers
from marco_search.search.rewards import CONFIDENCE, REWARDS

_UNREADABLE = (struct.error, ValueError, IndexError, TypeError)
"""What reading raises for a row that no version of marco-search can have written."""
_UNPACKED: dict[str, Callable[[dict[str, Any]], None]] = {
    "attempt": lambda _: None,
    "node": unpack_tokens,
    "rollout": lambda row: row.update(path=unpack_ints(row["path"])),
    "answer": lambda row: row.update(rollout_ids=unpack_ints(row["rollout_ids"])),
}
"""By kind: what becomes of the arrays in a row."""
Visits = Mapping[int, tuple[int, float]]
"""Visit count and value by node."""


def check_numbers(
    job_id: UUID, job: dict[str, Any], rows: Rows, visits: Visits | None, kinds: Kinds
) -> Iterator[Finding]:
    """What does not agree. `job`: request and outcome by column; `visits`: as the view shows."""
    plan = json.loads(job["plan"]) if job["plan"] else None
    config = plan["config"] if plan else {}
    read: dict[str, list[Any]] = {}
    for name, unpack in _UNPACKED.items():
        read[name] = []
        for key, row in rows.get(name, ()):
            try:
                values = kinds[name].reader.read(row)
                unpack(values)
            except _UNREADABLE as error:
                where = f"job {job_id}, {kinds[name].key} {key}"
                table = kinds[name].table
                yield Finding(table, where, "not readable", "a row", str(error), job_id)
                return
            read[name].append(SimpleNamespace(**values))
    nodes, rollouts, answers = read["node"], read["rollout"], read["answer"]
    yield from _check_attempts(job_id, plan, read["attempt"])
    tree, found = check_nodes(job_id, nodes)
    yield from found
    if len(tree) <= len(nodes):
        return  # nothing else can be computed
    if config.get("value") in REWARDS.keys() - CONFIDENCE:
        score_tokens(tree)
    yield from check_rollouts(job_id, tree, rollouts, config)
    yield from _check_visits(job_id, backed_up(rollouts), visits)
    payload = json.loads(job["payload"])
    yield from check_answers(job_id, job, payload, config, rollouts, answers)
    yield from _check_totals(job_id, job, len(nodes), rollouts, answers)


def _check_attempts(
    job_id: UUID, plan: Mapping[str, Any] | None, attempts: Sequence[Any]
) -> Iterator[Finding]:
    """Every attempt that began has the plan's configuration, prompt and seed."""
    for attempt in attempts:
        if plan is None or attempt.config is None:
            continue
        key = f"job {job_id}, generation {attempt.generation}"
        config = plan["config"]
        if json.loads(attempt.config) != config:
            yield Finding("attempts", key, "config", "the job's plan", "another", job_id)
        if attempt.prompt != plan["prompt"]:
            wanted = "the prompt of the job's plan"
            yield Finding("attempts", key, "prompt", wanted, "another", job_id)
        if attempt.seed != config["seed"]:
            found = str(attempt.seed)
            yield Finding("attempts", key, "seed", str(config["seed"]), found, job_id)


def _check_totals(
    job_id: UUID,
    job: Mapping[str, Any],
    nodes: int,
    rollouts: Sequence[Any],
    answers: Sequence[Any],
) -> Iterator[Finding]:
    """The counts and the answer on the job's row follow from the rest."""
    best = answers[0] if answers else None
    expected = {
        "nodes": nodes,
        "rollouts": len(rollouts),
        "rounds": max((r.round for r in rollouts), default=0),
        "generated_tokens": sum(r.generated_tokens for r in rollouts),
        "prompt_tokens": sum(r.prompt_tokens for r in rollouts),
        "cached_tokens": sum(r.cached_tokens for r in rollouts),
        "answer": best and best.text,
        "confidence": best and best.confidence,
    }
    for name, value in expected.items():
        if job[name] != value:
            wanted, key = f"{value!r} by its rows", f"id {job_id}"
            yield Finding("jobs", key, name, wanted, repr(job[name]), job_id)


def _check_visits(
    job_id: UUID, values: Mapping[int, Sequence[float]], shown: Visits | None
) -> Iterator[Finding]:
    if shown is None:
        return
    for node_id in sorted(values.keys() | shown.keys()):
        visits, value = shown.get(node_id, (0, 0.0))
        expected = len(values.get(node_id, ()))
        mean = sum(values[node_id]) / expected if expected else 0.0
        if visits != expected or not abs(value - mean) <= ROUNDING:
            key = f"job {job_id}, node_id {node_id}"
            wanted, found = f"{expected} with value {mean:.9g}", f"{visits} with value {value:.9g}"
            yield Finding("node_stats", key, "visits", wanted, found, job_id)
