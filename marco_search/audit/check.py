"""Checks one job: its rows against its proof and the chain, its numbers against each other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from marco_search.audit import canonical
from marco_search.audit.chain import Link
from marco_search.audit.findings import Finding, JobReport, status_of
from marco_search.audit.job_numbers import check_answers, check_attempts, check_totals
from marco_search.audit.proofs import BULK, KINDS, Proof, Row, prove
from marco_search.audit.recompute import ROUNDING, Grown, check_nodes
from marco_search.audit.rollouts import check_rollouts
from marco_search.audit.rows import (
    UNREADABLE,
    read_answer,
    read_node,
    read_rollout,
    read_values,
)
from marco_search.search.config import Value

FINAL = ("succeeded", "failed", "cancelled", "dead", "expired")
GIVEN_UP = ("failed", "dead")
PUT_BACK = "requeued"
"""The event after which a job that had been given up may run again. No other may."""
AFTERWARDS = (PUT_BACK, "archived", "published")
"""Events that may follow the end of a job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """One end of a job: its link, the proof kept with it, what is wrong with the link itself."""

    link: Link
    proof: Proof | None
    finding: Finding | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that is stored about one job. Rows by kind (`proofs.KINDS`), each in key order."""

    job_id: UUID
    rows: Mapping[str, Sequence[Row]]
    sealed: Sequence[Sealed] = ()  # by seq
    archived: bool = False
    visits: Mapping[int, tuple[int, float]] | None = None  # what the view node_stats shows


def check_job(evidence: Evidence) -> JobReport:
    """Everything about one job, checked."""
    job_id, rows, sealed = evidence.job_id, evidence.rows, evidence.sealed
    findings: list[Finding] = []
    job: dict[str, Any] = {}
    if not rows.get("request") or not rows.get("outcome"):
        findings.append(
            Finding("jobs", f"id {job_id}", "the job is gone", "its row", "none", job_id)
        )
    else:
        job = read_values(canonical.REQUEST, rows["request"][0][1])
        job |= read_values(canonical.OUTCOME, rows["outcome"][0][1])
    ended = job.get("state") in FINAL
    archived = (
        evidence.archived
        and not any(rows.get(kind) for kind in BULK)
        and any(event == "archived" for _, event in _events(evidence))
    )
    if job:
        findings += _check_seals(evidence, prove(rows), ended=ended, archived=archived)
        if not archived:
            findings += _recomputed(evidence, job)
    last = sealed[-1].link if sealed else None
    return JobReport(
        job_id=job_id,
        status=status_of(findings, ended=ended, archived=archived),
        seq=last.seq if last else None,
        root=last.root.hex() if last else None,
        nodes=len(rows.get("node", ())),
        rollouts=len(rows.get("rollout", ())),
        findings=tuple(findings),
    )


def _check_seals(
    evidence: Evidence, there: Proof, *, ended: bool, archived: bool
) -> Iterator[Finding]:
    job_id, sealed = evidence.job_id, evidence.sealed
    key = f"job {job_id}"
    if ended and not sealed:
        yield Finding("chain", key, "no link for a job that ended", "a link", "none", job_id)
        return
    if sealed and not ended and not _put_back(evidence, len(sealed) - 1):
        what = "the job had ended and nothing put it back"
        yield Finding("jobs", f"id {job_id}", what, "a final state", "another", job_id)
    for i, one in enumerate(sealed):
        if i and not _put_back(evidence, i - 1):
            what = "the job ended again, though nothing had put it back"
            yield Finding("chain", f"seq {one.link.seq}, {key}", what, "one end", "two", job_id)
        stands = ended and i == len(sealed) - 1
        if one.finding is not None:
            yield one.finding
        at = f"seq {one.link.seq}, {key}"
        if one.proof is None:
            yield Finding("proofs", at, "the proof is gone or cut", "its hashes", "none", job_id)
            if stands and not archived and there.root != one.link.root:
                yield _other_root("jobs", f"id {job_id}", one.link, there, job_id)
            continue
        yield from _compare(job_id, one.proof, there, stands=stands, archived=archived)
        if stands:
            yield from _late_events(evidence, one.proof)
        if one.proof.root != one.link.root:
            intact = stands and there.root == one.link.root
            yield _other_root("proofs" if intact else "chain", at, one.link, one.proof, job_id)


def _other_root(table: str, key: str, link: Link, proof: Proof, job_id: UUID) -> Finding:
    what = "the rows' root is not the chained one"
    return Finding(table, key, what, _short(link.root), _short(proof.root), job_id)


def _compare(
    job_id: UUID, proof: Proof, there: Proof, *, stands: bool, archived: bool
) -> Iterator[Finding]:
    """Rows that are not as they were. `stands`: the job has not run on since."""
    for kind, spec in KINDS.items():
        before, now = proof.hashes[kind], there.hashes[kind]
        if archived and kind in BULK:
            continue
        if not stands and kind in ("outcome", "answer"):
            continue  # a later end of the job has its own
        if before == now:
            continue
        for key, was in before.items():
            name = _name(job_id, spec.key, key)
            if key not in now:
                yield Finding(spec.table, name, "the row is gone", "the row", "none", job_id)
            elif now[key] != was:
                what = f"the {kind} was changed"
                yield Finding(spec.table, name, what, _short(was), _short(now[key]), job_id)
        if stands and kind != "event":  # the log may go on
            for key in now.keys() - before.keys():
                name = _name(job_id, spec.key, key)
                what = "added after the job had ended"
                yield Finding(spec.table, name, what, "no such row", "one", job_id)


def _name(job_id: UUID, column: str | None, key: int) -> str:
    return f"job {job_id}, {column} {key}" if column else f"id {job_id}"


def _short(digest: bytes) -> str:
    return f"hash {digest.hex()[:16]}"


def _events(evidence: Evidence) -> list[tuple[int, str]]:
    """(id, event) of the job's log, in order."""
    return [
        (key, str(read_values(canonical.EVENT, row)["event"]))
        for key, row in evidence.rows.get("event", ())
    ]


def _put_back(evidence: Evidence, end: int) -> bool:
    """Whether what followed this end could: it had given the job up, and then it was put back.

    A proof that is gone is a finding of its own: nothing is said here.
    """
    later = evidence.sealed[end + 1] if end + 1 < len(evidence.sealed) else None
    before, after = evidence.sealed[end].proof, later.proof if later else None
    if before is None or (later is not None and after is None):
        return True
    known = before.hashes["event"]
    ends = [event for key, event in _events(evidence) if key in known and event in FINAL]
    again = (
        event == PUT_BACK and key not in known and (after is None or key in after.hashes["event"])
        for key, event in _events(evidence)
    )
    return bool(ends) and ends[-1] in GIVEN_UP and any(again)


def _late_events(evidence: Evidence, proof: Proof) -> Iterator[Finding]:
    for key, event in _events(evidence):
        if key not in proof.hashes["event"] and event not in AFTERWARDS:
            name = _name(evidence.job_id, "id", key)
            what = "an event after the job had ended"
            yield Finding("audit_log", name, what, "none", event, evidence.job_id)


def _recomputed(evidence: Evidence, job: dict[str, Any]) -> Iterator[Finding]:
    """What does not agree within the job's rows."""
    job_id, rows = evidence.job_id, evidence.rows
    plan = json.loads(job["plan"]) if job["plan"] else None
    config = plan["config"] if plan else {}
    read: dict[str, list[Any]] = {}
    for kind, reader in (("node", read_node), ("rollout", read_rollout), ("answer", read_answer)):
        read[kind] = []
        for key, row in rows.get(kind, ()):
            try:
                read[kind].append(reader(row))
            except UNREADABLE as error:
                spec = KINDS[kind]
                name = _name(job_id, spec.key, key)
                yield Finding(spec.table, name, "not readable", "a row", str(error), job_id)
                return
    yield from check_attempts(job_id, plan, [row for _, row in rows.get("attempt", ())])
    tree, found = check_nodes(job_id, read["node"])
    yield from found
    if len(tree.parents) <= len(read["node"]):
        return  # the rest hangs in the air
    seed, value = config.get("seed"), config.get("value", Value.PATH.value)
    yield from check_rollouts(job_id, tree, read["rollout"], seed=seed, value=value)
    yield from _check_visits(job_id, tree, evidence.visits)
    yield from check_answers(job_id, job, config, read["rollout"], read["answer"])
    yield from check_totals(job_id, job, len(read["node"]), read["rollout"], read["answer"])


def _check_visits(
    job_id: UUID, tree: Grown, shown: Mapping[int, tuple[int, float]] | None
) -> Iterator[Finding]:
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
