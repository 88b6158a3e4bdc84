"""Checks what a job's rows say about each other: attempts and totals."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from uuid import UUID

from marco_search.audit import canonical
from marco_search.audit.findings import Finding
from marco_search.audit.v1.columns import ATTEMPT
from marco_search.audit.v1.rows import AnswerRow, RolloutRow


def check_attempts(
    job_id: UUID, plan: Mapping[str, Any] | None, attempts: Sequence[bytes]
) -> Iterator[Finding]:
    """Every attempt that began has the plan's configuration, prompt and seed."""
    for row in attempts:
        attempt: dict[str, Any] = canonical.decode(ATTEMPT, row)
        if plan is None or attempt["config"] is None:
            continue
        key = f"job {job_id}, generation {attempt['generation']}"
        config = plan["config"]
        if json.loads(attempt["config"]) != config:
            yield Finding("attempts", key, "config", "the job's plan", "another", job_id)
        if attempt["prompt"] != plan["prompt"]:
            yield Finding(
                "attempts", key, "prompt", "the prompt of the job's plan", "another", job_id
            )
        if attempt["seed"] != config["seed"]:
            there = str(attempt["seed"])
            yield Finding("attempts", key, "seed", str(config["seed"]), there, job_id)


def check_totals(
    job_id: UUID,
    job: Mapping[str, Any],
    nodes: int,
    rollouts: Sequence[RolloutRow],
    answers: Sequence[AnswerRow],
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
            key = f"id {job_id}"
            yield Finding("jobs", key, name, f"{value!r} by its rows", repr(job[name]), job_id)
