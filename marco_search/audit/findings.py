"""Results of verification: wrong rows, each job, and the whole database."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

MOST_FINDINGS = 1000
"""Maximum findings stored for a job, and for a database."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A row that is wrong."""

    table: str  #: where it is
    key: str  #: what names the row, such as "job 0199..., node_id 4"
    what: str  #: what is wrong with it
    expected: str  #: what it should be
    found: str  #: what it is
    job_id: UUID | None = None  #: the job it belongs to
    unknown: bool = False  #: whether a newer version wrote it: not wrong, but not checked either

    def __str__(self) -> str:
        where = f"{self.table} ({self.key})"
        return f"{where}: {self.what}: expected {self.expected}, found {self.found}"


class Status(StrEnum):
    """What verification says about a job."""

    VALID = "valid"
    """It has ended, and nothing has changed since."""
    OPEN = "open"
    """It has not ended: its numbers agree, but nothing proves its rows yet."""
    ARCHIVED = "archived"
    """Its tree is in an archive; what is left has not changed."""
    REDACTED = "redacted"
    """Its texts were redacted; nothing else has changed."""
    BROKEN = "broken"
    """A row does not match."""
    UNKNOWN = "unknown"
    """Its format can only be checked by a newer version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobReport:
    """Verification of one job."""

    job_id: UUID  #: the job
    status: Status  #: the result
    seq: int | None  #: its link in the chain; None: it has none
    root: str | None  #: the root in the chain, hex
    nodes: int  #: nodes that were checked
    rollouts: int  #: rollouts that were checked
    redacted: bool = False  #: whether its texts were replaced, as the chain says
    proved: bool = True  #: whether the proof of its end still holds for everything but texts
    external: int = 0  #: of those, with scores from outside: in 0 to 1, but not computed again
    findings: tuple[Finding, ...] = ()  #: in order; the first is the row to look at


@dataclass(slots=True, kw_only=True)
class Report:
    """Verification of a database, or a part of it. Counts are of what was checked."""

    jobs: int = 0
    open_jobs: int = 0
    archived_jobs: int = 0
    redacted_jobs: int = 0
    nodes: int = 0
    rollouts: int = 0
    links: int = 0
    seconds: float = 0.0
    findings: tuple[Finding, ...] = ()

    @property
    def ok(self) -> bool:
        """True if nothing was found."""
        return not self.findings

    def add(self, job: JobReport) -> None:
        """Count a job."""
        self.jobs += 1
        self.open_jobs += job.status is Status.OPEN
        self.archived_jobs += job.status is Status.ARCHIVED
        self.redacted_jobs += job.redacted
        self.nodes += job.nodes
        self.rollouts += job.rollouts
        self.findings += job.findings[:MOST_FINDINGS]

    def merge(self, part: Report) -> None:
        """Count what another report has."""
        for name in ("jobs", "open_jobs", "archived_jobs", "redacted_jobs", "nodes", "rollouts"):
            setattr(self, name, getattr(self, name) + getattr(part, name))
        self.findings += part.findings
