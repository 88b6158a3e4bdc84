"""Checks one job: its rows against its proofs and the chain, its numbers against each other.

Each proof is checked by the rules of its own format (marco_search.audit.formats).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

from marco_search.audit.chain import Link, unknown_format
from marco_search.audit.evidence import FINAL, Evidence, check_late, events, put_back
from marco_search.audit.findings import Finding, JobReport, status_of
from marco_search.audit.formats import FORMATS, NEWEST
from marco_search.audit.proofs import BULK, Proof, prove
from marco_search.audit.v1.payload import hashes


def check_job(evidence: Evidence) -> JobReport:
    """Everything about one job, checked."""
    job_id, sealed = evidence.job_id, evidence.sealed
    last = sealed[-1].link if sealed else None
    number = last.format if last and last.format in FORMATS else NEWEST
    rows, kinds = evidence.rows.get(number, {}), FORMATS[number].kinds
    findings: list[Finding] = []
    job: dict[str, Any] = {}
    if not rows.get("request") or not rows.get("outcome"):
        findings.append(
            Finding("jobs", f"id {job_id}", "the job is gone", "its row", "none", job_id)
        )
    else:
        job = kinds["request"].reader.read(rows["request"][0][1])
        job |= kinds["outcome"].reader.read(rows["outcome"][0][1])
    ended = job.get("state") in FINAL
    archived = (
        bool(evidence.archives)
        and not any(rows.get(kind) for kind in BULK)
        and any(event.event == "archived" for event in events(evidence, number))
    )
    if job:
        findings += _check_seals(evidence, ended=ended, archived=archived)
        # One that goes on goes on by the rules of this version, whenever it had ended before.
        rules = number if ended else NEWEST
        known = last is None or last.format == number
        if not archived and known:
            findings += _check_numbers(evidence, job, rules)
        if known:
            findings += _check_payload(job_id, job, rules)
    return JobReport(
        job_id=job_id,
        status=status_of(findings, ended=ended, archived=archived),
        seq=last.seq if last else None,
        root=last.root.hex() if last else None,
        nodes=len(rows.get("node", ())),
        rollouts=len(rows.get("rollout", ())),
        findings=tuple(findings),
    )


def _check_numbers(evidence: Evidence, job: dict[str, Any], number: int) -> Iterator[Finding]:
    # It loads NumPy, and each process that ends jobs loads this module.
    from marco_search.audit.v1.numbers import check_numbers

    rows, kinds = evidence.rows.get(number, {}), FORMATS[number].kinds
    try:
        yield from check_numbers(evidence.job_id, job, rows, evidence.visits, kinds)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        key, found = f"id {evidence.job_id}", f"{type(error).__name__}: {error}"
        yield Finding("jobs", key, "not readable", "a job's rows", found, evidence.job_id)


def _check_payload(job_id: UUID, job: dict[str, Any], number: int) -> Iterator[Finding]:
    """The payload's hash, by the defaults of any version that may have submitted the job."""
    there, wanted = job["payload_hash"], "that of a valid request"
    for known in sorted((n for n in FORMATS if n <= number), reverse=True):
        try:
            for wanted in hashes(job["payload"], job["expected"], *FORMATS[known].payload):
                if wanted == there:
                    return
        except (ValueError, RecursionError):
            break
    key = f"id {job_id}"
    yield Finding("jobs", key, "payload_hash", f"{wanted!r} by its rows", repr(there), job_id)


def _check_seals(evidence: Evidence, *, ended: bool, archived: bool) -> Iterator[Finding]:
    job_id, sealed = evidence.job_id, evidence.sealed
    key = f"job {job_id}"
    if ended and not sealed:
        yield Finding("chain", key, "no link for a job that ended", "a link", "none", job_id)
        return
    if sealed and not ended and not put_back(evidence, len(sealed) - 1):
        what = "the job had ended and nothing put it back"
        yield Finding("jobs", f"id {job_id}", what, "a final state", "another", job_id)
    for i, one in enumerate(sealed):
        if i and not put_back(evidence, i - 1):
            what = "the job ended again, though nothing had put it back"
            yield Finding("chain", f"seq {one.link.seq}, {key}", what, "one end", "two", job_id)
        stands = ended and i == len(sealed) - 1
        if one.finding is not None:
            yield one.finding
        if unknown := unknown_format(one.link):
            yield unknown
            continue
        there = prove(evidence.rows[one.link.format], FORMATS[one.link.format].kinds)
        at = f"seq {one.link.seq}, {key}"
        if one.proof is None:
            yield Finding("proofs", at, "the proof is gone or cut", "its hashes", "none", job_id)
            if stands and not archived and there.root != one.link.root:
                yield _other_root("jobs", f"id {job_id}", one.link, there, job_id)
            continue
        yield from _compare(evidence, one.link, one.proof, there, stands=stands, archived=archived)
        if stands:
            yield from check_late(evidence, one.link, one.proof)
        if one.proof.root != one.link.root:
            intact = stands and there.root == one.link.root
            yield _other_root("proofs" if intact else "chain", at, one.link, one.proof, job_id)


def _other_root(table: str, key: str, link: Link, proof: Proof, job_id: UUID) -> Finding:
    what = "the rows' root is not the chained one"
    return Finding(table, key, what, _short(link.root), _short(proof.root), job_id)


def _compare(
    evidence: Evidence, link: Link, proof: Proof, there: Proof, *, stands: bool, archived: bool
) -> Iterator[Finding]:
    """Rows that are not as they were. `stands`: the job has not run on since."""
    job_id = evidence.job_id
    for kind, spec in FORMATS[link.format].kinds.items():
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
