"""What verification has in hand about one job, and what its log says.

No proof covers the events after a job's end yet. A dead or failed job may be put back; its next
end covers what was logged until then. Of a job whose last end stands, only one event is accepted:
that it was archived, which must agree with the chained list of the archive.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import SimpleNamespace
from uuid import UUID

from marco_search.audit.canonical import microseconds
from marco_search.audit.chain import Link
from marco_search.audit.findings import Finding
from marco_search.audit.formats import FORMATS, NEWEST
from marco_search.audit.proofs import Proof, Rows

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

    job_id: UUID  #: the job
    rows: Mapping[int, Rows]  #: by format, those of each of its links and the newest
    sealed: Sequence[SealedRun] = ()  #: its ends, in the chain's order
    archives: Sequence[Archived] = ()  #: those that cover it
    visits: Mapping[int, tuple[int, float]] | None = None
    """Visit count and value by node, as the view node_stats shows them."""


def events(evidence: Evidence, number: int = NEWEST) -> list[SimpleNamespace]:
    """The job's log, in order, as rows of this format; times as in canonical rows."""
    reader = FORMATS[number].kinds["event"].reader
    rows = evidence.rows.get(number, {}).get("event", ())
    return [SimpleNamespace(**reader.read(row)) for _, row in rows]


def put_back(evidence: Evidence, end: int) -> bool:
    """Whether what followed this end could: it was failed or dead, and then requeued.

    A proof that is gone is a finding of its own, not of this check.
    """
    later = evidence.sealed[end + 1] if end + 1 < len(evidence.sealed) else None
    before, after = evidence.sealed[end].proof, later.proof if later else None
    if before is None or (later is not None and after is None):
        return True
    known, log = before.hashes["event"], events(evidence)
    ends = [e.event for e in log if e.id in known and e.event in FINAL]
    new = [
        e.event
        for e in log
        if e.id not in known and (after is None or e.id in after.hashes["event"])
    ]
    # A sweep of version 0.1.0 may have noted something before it.
    first = next((event for event in new if event != "published"), None)
    return bool(ends) and ends[-1] in DEAD and first == PUT_BACK


def check_late(evidence: Evidence, link: Link, proof: Proof) -> Iterator[Finding]:
    """What can't be among the events after the end that stands, which `link` chained."""
    archived = 0
    for event in events(evidence, link.format):
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
