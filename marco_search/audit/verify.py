"""Checks one job: its rows against its proofs and the chain, its numbers against each other.

Each proof is checked by the rules of its own format (marco_search.audit.formats). No proof covers
events after a job's end. A dead or failed job may be requeued; its next end covers what was logged
until then. After a job's last end two events are accepted: that it was archived, which must agree
with the archive's chained manifest, and that it was redacted.

A redacted job has a separate link over its rows after the redaction. The proof of its end is
checked on all columns but the texts, if its format commits to these (4 and later).
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import sha256
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from marco_search.audit import redaction
from marco_search.audit.canonical import microseconds
from marco_search.audit.chain import REDACTION, Link, unknown_format
from marco_search.audit.findings import Finding, JobReport, Status
from marco_search.audit.formats import COMMITS, FORMATS, NEWEST, payload_hashes
from marco_search.audit.proofs import (
    BULK,
    NO_SALT,
    Kinds,
    Proof,
    Rows,
    prove,
    prove_without_texts,
)
from marco_search.search.rewards import EXTERNAL, reward_of

FINAL = ("succeeded", "failed", "cancelled", "dead", "expired")
DEAD = ("failed", "dead")
PUT_BACK = "requeued"
"""The only event after which a dead job may run again."""
_LATE_US = 3_600_000_000  # an hour: how late a sweep of version 0.1.0 may have noted something


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedRun:
    """One end of a job: its link, the stored proof, and findings about the link itself."""

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
class Redaction:
    """A row of redactions."""

    by: str  #: the login
    commitments: bytes  #: of the rows that the proof of the last end covers
    at: datetime | None = None  #: None: not known, in an archive's files


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that is stored about one job."""

    job_id: UUID
    rows: Mapping[int, Rows]  #: by format, those of each of its links and the newest
    sealed: Sequence[SealedRun] = ()  #: its links, in the chain's order
    salt: bytes | None = None  #: null: destroyed
    redacted_at: datetime | None = None  #: as the job's row says
    redaction: Redaction | None = None
    apart: bool = False  #: from an archive's files, which a redaction writes before it is chained
    archives: Sequence[Archived] = ()  #: those that cover it
    visits: Mapping[int, tuple[int, float]] | None = None
    """Visit count and value by node, as the view node_stats shows them."""

    @property
    def redacted(self) -> bool:
        """Whether its texts were replaced."""
        return bool(self.redactions) or (self.apart and self.redaction is not None)

    @property
    def ends(self) -> list[SealedRun]:
        """The links of its ends."""
        return [one for one in self.sealed if one.link.kind != REDACTION]

    @property
    def redactions(self) -> list[SealedRun]:
        """The links of its redactions: one at most."""
        return [one for one in self.sealed if one.link.kind == REDACTION]


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
    findings += _check_keys(evidence, number)
    ended = job.get("state") in FINAL
    archived = (
        bool(evidence.archives)
        and not any(rows.get(kind) for kind in BULK)
        and any(event.event == "archived" for event in _events(evidence, number))
    )
    if job:
        findings += _check_seals(evidence, ended=ended, archived=archived)
        # A job that continues does so by this version's rules, whichever version ended it before.
        rules = number if ended else NEWEST
        known = last is None or last.format == number
        if not archived and known:
            findings += _check_numbers(evidence, job, rules)
        if known and not evidence.redacted:
            findings += _check_payload(job_id, job, rules)
    redacted = evidence.redacted
    if findings:
        unknown = all(finding.unknown for finding in findings)
        status = Status.UNKNOWN if unknown else Status.BROKEN
    elif archived or redacted:
        status = Status.ARCHIVED if archived else Status.REDACTED
    else:
        status = Status.VALID if ended else Status.OPEN
    return JobReport(
        job_id=job_id,
        status=status,
        redacted=redacted,
        proved=not redacted or all(end.link.format >= COMMITS for end in evidence.ends),
        seq=last.seq if last else None,
        root=last.root.hex() if last else None,
        nodes=len(rows.get("node", ())),
        rollouts=len(rows.get("rollout", ())),
        external=_external(job, rows, kinds),
        findings=tuple(findings),
    )


def _check_keys(evidence: Evidence, number: int) -> Iterator[Finding]:
    """Findings for duplicate keys, which are possible if the primary key was dropped."""
    for name, kind in FORMATS[number].kinds.items():
        counts = Counter(key for key, _ in evidence.rows.get(number, {}).get(name, ()))
        for key, count in counts.items():
            if count > 1:
                what, where = "several rows have this key", _name(evidence.job_id, kind.key, key)
                yield Finding(kind.table, where, what, "one", str(count), evidence.job_id)


def _external(job: dict[str, Any], rows: Rows, kinds: Kinds) -> int:
    """How many rollouts have scores from a reward model or a verifier."""
    try:
        if reward_of(json.loads(job["plan"])["config"]) not in EXTERNAL:
            return 0
        read = kinds["rollout"].reader.read
        return sum(read(row)["scores"] is not None for _, row in rows.get("rollout", ()))
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError, struct.error):
        return 0  # never begun, or what `_check_numbers` finds


def _check_numbers(evidence: Evidence, job: dict[str, Any], number: int) -> Iterator[Finding]:
    # It loads NumPy, and each process that ends jobs loads this module.
    from marco_search.audit.numbers import check_numbers

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
            for wanted in payload_hashes(job["payload"], job["expected"], *FORMATS[known].payload):
                if wanted == there:
                    return
        except (ValueError, RecursionError):
            break
    key = f"id {job_id}"
    yield Finding("jobs", key, "payload_hash", f"{wanted!r} by its rows", repr(there), job_id)


def _check_seals(evidence: Evidence, *, ended: bool, archived: bool) -> Iterator[Finding]:
    job_id, sealed = evidence.job_id, evidence.ends
    key = f"job {job_id}"
    yield from _check_redaction(evidence, ended=ended, archived=archived)
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
        yield from _check_sealed(
            evidence, one, stands=ended and one is sealed[-1], archived=archived
        )


def _check_sealed(
    evidence: Evidence, one: SealedRun, *, stands: bool, archived: bool
) -> Iterator[Finding]:
    """Findings of a link, its proof, and the current rows. `stands`: the job has not run since."""
    job_id, link = evidence.job_id, one.link
    if one.finding is not None:
        yield one.finding
    if unknown := unknown_format(link):
        yield unknown
        return
    if link.kind != REDACTION and evidence.redacted and link.format < COMMITS:
        return  # its hashes would reveal the texts, and were erased with them
    there, at = _proof_there(evidence, link), f"seq {link.seq}, job {job_id}"
    if one.proof is None:
        yield Finding("proofs", at, "the proof is gone or cut", "its hashes", "none", job_id)
        if stands and not archived and there.root != link.root:
            yield _other_root("jobs", f"id {job_id}", link, there, job_id)
        return
    yield from _compare(evidence, link, one.proof, there, stands=stands, archived=archived)
    if stands:
        yield from _check_late(evidence, link, one.proof)
    if one.proof.root != link.root:
        intact = stands and there.root == link.root
        yield _other_root("proofs" if intact else "chain", at, link, one.proof, job_id)


def _proof_there(evidence: Evidence, link: Link) -> Proof:
    """The proof of the current rows, by the rules of the link's format."""
    rows, kinds = evidence.rows[link.format], FORMATS[link.format].kinds
    if link.kind == REDACTION:
        return prove(rows, kinds, NO_SALT)
    last = evidence.ends[-1].proof if evidence.ends else None
    if evidence.redacted and evidence.redaction and last:
        kept = last.like(evidence.redaction.commitments)
        return prove_without_texts(rows, kinds, kept.hashes if kept else {})
    return prove(rows, kinds, evidence.salt or NO_SALT)


def _check_redaction(evidence: Evidence, *, ended: bool, archived: bool) -> Iterator[Finding]:
    """Findings unless texts, and only texts, were removed by an authorised redaction."""
    job_id, links, row = evidence.job_id, evidence.redactions, evidence.redaction
    key = f"job {job_id}"
    logged_at = row.at if row and links else None
    if evidence.redacted_at != logged_at and not evidence.apart:
        found = str(evidence.redacted_at)
        yield Finding("jobs", f"id {job_id}", "redacted_at", str(logged_at), found, job_id)
    committed = any(COMMITS <= one.link.format <= NEWEST for one in evidence.ends)
    if not links and evidence.redacted:
        if evidence.salt is not None:
            yield Finding("jobs", f"id {job_id}", "the salt is there", "none", "a salt", job_id)
        yield from _texts_left(evidence, NEWEST)
        return
    if not links:
        if row is not None:
            what = "redacted, and the chain does not say so"
            yield Finding("redactions", key, what, "a link", "none", job_id)
        elif evidence.salt is None and committed:
            what = "the salt is gone, and the job was not redacted"
            yield Finding("jobs", f"id {job_id}", what, "a salt", "none", job_id)
        return
    one = links[-1]
    yield from _check_sealed(evidence, one, stands=True, archived=archived)
    if one.link.format in FORMATS:
        for wrong in _wrong_redaction(evidence, one.link, ended=ended):
            yield Finding("redactions", f"seq {one.link.seq}, {key}", *wrong, job_id)
        yield from _texts_left(evidence, one.link.format)


def _texts_left(evidence: Evidence, number: int) -> Iterator[Finding]:
    job_id = evidence.job_id
    for name, kind in FORMATS[number].kinds.items():
        for row_key, data in evidence.rows[number].get(name, ()):
            if column := redaction.left(kind, data):
                where, what = _name(job_id, kind.key, row_key), f"{column} of a redacted job"
                yield Finding(kind.table, where, what, "what a redaction leaves", "a text", job_id)


def _wrong_redaction(
    evidence: Evidence, link: Link, *, ended: bool
) -> Iterator[tuple[str, str, str]]:
    """What, expected and found, where link, row and event of a redaction do not agree."""
    row, ends = evidence.redaction, evidence.ends
    if len(evidence.redactions) > 1:
        yield "redacted again", "once", "twice"
    if not ended or not ends or ends[-1].link.seq > link.seq:
        yield "redacted before it had ended", "an end before", "none"
        return
    if row is None:
        yield "a redaction that nobody had the right to", "a row", "none"
        return
    if evidence.salt is not None:
        yield "the salt was not destroyed", "none", "a salt"
    wanted = {
        "by": row.by,
        "root": ends[-1].link.root.hex(),
        "commitments": sha256(row.commitments).hexdigest(),
    }
    events = [e for e in _events(evidence, link.format) if e.event == redaction.EVENT]
    found = [{name: _detail(event).get(name) for name in wanted} for event in events]
    late = row.at is not None and [e.at for e in events] != [microseconds(row.at)]
    if found != [wanted] or late:
        yield "its event", "what the row says", f"{len(found)} with another" if found else "none"


def _other_root(table: str, key: str, link: Link, proof: Proof, job_id: UUID) -> Finding:
    what = "the rows' root is not the chained one"
    return Finding(table, key, what, _short(link.root), _short(proof.root), job_id)


def _compare(
    evidence: Evidence, link: Link, proof: Proof, there: Proof, *, stands: bool, archived: bool
) -> Iterator[Finding]:
    """Findings for changed rows. `stands`: the job has not run since."""
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
        if stands and kind != "event":  # the log may continue
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


def _detail(event: SimpleNamespace) -> dict[str, Any]:
    try:
        read = json.loads(event.detail)
    except (ValueError, TypeError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}


def _put_back(evidence: Evidence, end: int) -> bool:
    """Whether what followed this end could: it was failed or dead, and then requeued.

    A missing proof is a separate finding.
    """
    later = evidence.ends[end + 1] if end + 1 < len(evidence.ends) else None
    before, after = evidence.ends[end].proof, later.proof if later else None
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
    """Findings for events that may not follow the last end, which `link` chained."""
    archived = 0
    for event in _events(evidence, link.format):
        if event.id in proof.hashes["event"]:
            continue
        what = "an event after the job had ended"
        if event.event == redaction.EVENT and evidence.redactions and link.kind != REDACTION:
            continue  # checked with its link
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
    """What was expected and found, if no archive wrote this event."""
    if not evidence.archives:
        return "none, since the month is not archived", "archived"
    if count > 1:
        return "archived once", "again"
    detail = _detail(event)
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
