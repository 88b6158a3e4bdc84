"""Checks what a job's rows say about each other: attempts, ranked answers, totals."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from uuid import UUID

from marco_search.audit import canonical
from marco_search.audit.findings import Finding
from marco_search.audit.recompute import ROUNDING
from marco_search.audit.rows import AnswerRow, RolloutRow, read_values
from marco_search.errors import InvalidJob, SearchError
from marco_search.jobs import parse_job, payload_hash
from marco_search.kinds import KINDS
from marco_search.search.answers import Candidate, RankedAnswer, rank


def check_attempts(
    job_id: UUID, plan: Mapping[str, Any] | None, attempts: Sequence[bytes]
) -> Iterator[Finding]:
    """Every attempt that began has the plan's configuration, prompt and seed."""
    for row in attempts:
        attempt: dict[str, Any] = read_values(canonical.ATTEMPT, row)
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


def check_answers(
    job_id: UUID,
    job: Mapping[str, Any],
    config: Mapping[str, Any],
    rollouts: Sequence[RolloutRow],
    answers: Sequence[AnswerRow],
) -> Iterator[Finding]:
    """The stored answers are those that the rollouts' vote gives, in that order."""
    if not answers and job["state"] != "succeeded":
        return  # ended before anything was ranked
    payload = json.loads(job["payload"])
    shown = payload.get("options", {}).get("answers", len(answers))
    try:
        expected = _ranked(job["kind"], config, rollouts)[:shown]
    except (SearchError, KeyError) as error:
        yield Finding("rollouts", f"job {job_id}", "no vote", "votes", str(error), job_id)
        return
    for i in range(max(len(expected), len(answers))):
        key = f"job {job_id}, rank {i + 1}"
        if i >= len(answers):
            yield Finding("answers", key, "missing", repr(expected[i].key), "no row", job_id)
        elif i >= len(expected):
            yield Finding("answers", key, "not voted for", "no row", repr(answers[i].key), job_id)
        else:
            yield from _compare(job_id, key, i + 1, answers[i], expected[i])


def _ranked(
    kind: str, config: Mapping[str, Any], rollouts: Sequence[RolloutRow]
) -> list[RankedAnswer]:
    found = [(r.answer, r.path_confidence, r.rollout_id) for r in rollouts if r.answer is not None]
    if not found:
        return []
    keys = KINDS[kind].merge([(key, value) for key, value, _ in found])
    candidates = [
        Candidate(key=key, value=value, rollout_id=rollout_id)
        for key, (_, value, rollout_id) in zip(keys, found, strict=True)
    ]
    return rank(candidates, config["choice"], sharpness=config["sharpness"])


def _compare(
    job_id: UUID, key: str, place: int, there: AnswerRow, expected: RankedAnswer
) -> Iterator[Finding]:
    for what, wanted, found in (
        ("rank", place, there.rank),
        ("key", expected.key, there.key),
        ("rollout_ids", expected.rollout_ids, there.rollout_ids),
        ("votes", expected.votes, there.votes),
        ("confidence", expected.confidence, there.confidence),
        ("share", expected.share, there.share),
    ):
        near = isinstance(wanted, float) and abs(wanted - float(str(found))) <= ROUNDING
        if wanted != found and not near:
            yield Finding("answers", key, what, f"{wanted!r} by the vote", repr(found), job_id)
            return


def check_totals(
    job_id: UUID,
    job: Mapping[str, Any],
    nodes: int,
    rollouts: Sequence[RolloutRow],
    answers: Sequence[AnswerRow],
) -> Iterator[Finding]:
    """The counts, the answer and the payload's hash on the job's row follow from the rest."""
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
        "payload_hash": _payload_hash(job),
    }
    for name, value in expected.items():
        if job[name] != value:
            key = f"id {job_id}"
            yield Finding("jobs", key, name, f"{value!r} by its rows", repr(job[name]), job_id)


def _payload_hash(job: Mapping[str, Any]) -> str:
    try:
        return payload_hash(parse_job(json.loads(job["payload"]) | {"expected": job["expected"]}))
    except InvalidJob as error:
        return f"that of a valid request ({error})"
