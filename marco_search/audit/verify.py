"""Checks one job: its rows against its proofs and the chain, its numbers against each other.

Each proof is checked by the rules of its own format (marco_search.audit.formats). No proof covers
the events after a job's end yet. A dead or failed job may be put back; its next end covers what
was logged until then. Of a job whose last end stands, only one event is accepted: that it was
archived, which must agree with the chained list of the archive.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from marco_search.audit.canonical import microseconds
from marco_search.audit.chain import Link, unknown_format
from marco_search.audit.findings import Finding, JobReport, status_of
from marco_search.audit.formats import FORMATS, NEWEST
from marco_search.audit.proofs import BULK, Kinds, Proof, Rows, prove
from marco_search.audit.v1.payload import hashes
from marco_search.search.rewards import EXTERNAL, reward_of

FINAL = ("succeeded", "failed", "cancelled", "dead", "expired")
DEAD = ("failed", "dead")
PUT_BACK = "requeued"
"""The event after which a dead job may run again. No other may."""
_LATE_US = 3_600_000_000  # an hour: how late a sweep of version 0.1.0 may have noted something


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedRun:
    """One end of a job: its link, the proof kept with it, what is wrong with the link itself."""

    link: Link
    proof: Proof | None
    finding: Finding | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Archived:
    """A chained archive: it has the trees of the jobs with first <= id < before."""

    first: UUID
    before: UUID
    month: str  #: such as 2026-08
    root: bytes  #: the SHA-256 of its list, as the chain has it
    at: datetime  #: the time of its link


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that is stored about one job."""

    job_id: UUID
    rows: Mapping[int, Rows]  #: by format, those of each of its links and the newest
    sealed: Sequence[SealedRun] = ()  #: its ends, in the chain's order
    archives: Sequence[Archived] = ()  #: those that cover it
    visits: Mapping[int, tuple[int, float]] | None = None
    """Visit count and value by node, as the view node_stats shows them."""


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
        and any(event.event == "archived" for event in _events(evidence, number))
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
        external=_external(job, rows, kinds),
        findings=tuple(findings),
    )


def _external(job: dict[str, Any], rows: Rows, kinds: Kinds) -> int:
    """How many rollouts have scores from a reward model or a verifier."""
    try:
        if reward_of(json.loads(job["plan"])["config"]) not in EXTERNAL:
            return 0
        read = kinds["rollout"].reader.read
        return sum(read(row)["scores"] is not None for _, row in rows.get("rollout", ()))
    except (LookupError, TypeError, ValueError, AttributeError, struct.error):
        return 0  # never begun, or what `_check_numbers` finds


def _check_numbers(evidence: Evidence, job: dict[str, Any], number: int) -> Iterator[Finding]:
    # It loads NumPy, and each process that ends jobs loads this module.
    from marco_search.audit.v1.numbers import check_numbers

    job_id, rows = evidence.job_id, evidence.rows.get(number, {})
    try:
        for wrong in check_numbers(job, rows, evidence.visits, FORMATS[number].kinds):
            key = f"job {job_id}" + (f", {wrong.key}" if wrong.key else "")
            yield replace(
                wrong, key=f"id {job_id}" if wrong.table == "jobs" else key, job_id=job_id
            )
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        found = f"{type(error).__name__}: {error}"
        yield Finding("jobs", f"id {job_id}", "not readable", "a job's rows", found, job_id)


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
            yield from _check_late(evidence, one.link, one.proof)
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


def _events(evidence: Evidence, number: int = NEWEST) -> list[SimpleNamespace]:
    """The job's log, in order, as rows of this format; times as in canonical rows."""
    reader = FORMATS[number].kinds["event"].reader
    rows = evidence.rows.get(number, {}).get("event", ())
    return [SimpleNamespace(**reader.read(row)) for _, row in rows]


def _put_back(evidence: Evidence, end: int) -> bool:
    """Whether what followed this end could: it was failed or dead, and then requeued.

    A proof that is gone is a finding of its own, not of this check.
    """
    later = evidence.sealed[end + 1] if end + 1 < len(evidence.sealed) else None
    before, after = evidence.sealed[end].proof, later.proof if later else None
    if before is None or (later is not None and after is None):
        return True
    known, log = before.hashes["event"], _events(evidence)
    ends = [e.event for e in log if e.id in known and e.event in FINAL]
    new = [
        e.event
        for e in log
        if e.id not in known and (after is None or e.id in after.hashes["event"])
    ]
    # A sweep of version 0.1.0 may have noted something before it.
    first = next((event for event in new if event != "published"), None)
    return bool(ends) and ends[-1] in DEAD and first == PUT_BACK


def _check_late(evidence: Evidence, link: Link, proof: Proof) -> Iterator[Finding]:
    """What can't be among the events after the end that stands, which `link` chained."""
    archived = 0
    for event in _events(evidence, link.format):
        if event.id in proof.hashes["event"]:
            continue
        what = "an event after the job had ended"
        if event.event == "archived":
            archived += 1
            wrong = _wrong_archived(evidence, link, event, archived)
        elif event.event in FORMATS[link.format].late_events:
            wrong = _wrong_published(link, event)
        else:
            wrong = ("none", event.event)
        if wrong is not None:
            name = f"job {evidence.job_id}, id {event.id}"
            yield Finding("audit_log", name, what, *wrong, evidence.job_id)


def _wrong_archived(
    evidence: Evidence, link: Link, event: SimpleNamespace, count: int
) -> tuple[str, str] | None:
    """Expected and found, if no archive wrote this event."""
    if not evidence.archives:
        return "none, since the month is not archived", "archived"
    if count > 1:
        return "archived once", "again"
    try:
        detail = json.loads(event.detail or "{}")
    except RecursionError:
        detail = None
    end = microseconds(link.at)
    for archive in evidence.archives:
        wanted = {"month": archive.month, "manifest": archive.root.hex()}
        in_time = end <= event.at <= microseconds(archive.at)
        if detail == wanted and in_time and event.generation is None:
            return None
    return "what the archive's list says", f"another {event.event}"


def _wrong_published(link: Link, event: SimpleNamespace) -> tuple[str, str] | None:
    late = event.at - microseconds(link.at)
    if event.generation is None and event.detail == "{}" and abs(late) <= _LATE_US:
        return None
    return "none", f"{event.event}, not as a sweep would note it"
