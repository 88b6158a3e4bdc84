"""What verification reports: the rows that are wrong, each job, and the whole database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

MOST_FINDINGS = 1000
"""Kept of a job, and of a database."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A row that is wrong.

    Attributes:
        table: Where it is.
        key: What names the row, such as "job 0199..., node_id 4".
        what: What is wrong with it.
        expected: What it should be.
        found: What it is.
        job_id: The job it belongs to.
        unknown: Whether a newer version wrote it: not wrong, but not checked either.
    """

    table: str
    key: str
    what: str
    expected: str
    found: str
    job_id: UUID | None = None
    unknown: bool = False

    def __str__(self) -> str:
        return f"{self.table} ({self.key}): {self.what}: expected {self.expected}, {self.actual}"

    @property
    def actual(self) -> str:
        """What was found, in words."""
        return f"there is {self.found}"


class Status(StrEnum):
    """What verification says about a job."""

    VALID = "fits"
    """It has ended, and everything is as it was then."""
    OPEN = "open"
    """It has not ended: its numbers agree, nothing vouches for its rows yet."""
    ARCHIVED = "archived"
    """Its tree is in an archive; what is left is as it was."""
    BROKEN = "broken"
    """Some row is wrong."""
    UNKNOWN = "unknown"
    """Of a format that only a newer version can check."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobReport:
    """Verification of one job.

    Attributes:
        job_id: The job.
        status: The result.
        seq: Its link in the chain; None: it has none.
        root: The root in the chain, hex.
        nodes: Nodes that were checked.
        rollouts: Rollouts that were checked.
        findings: In order; the first is the row to look at.
    """

    job_id: UUID
    status: Status
    seq: int | None
    root: str | None
    nodes: int
    rollouts: int
    findings: tuple[Finding, ...] = ()


@dataclass(slots=True, kw_only=True)
class Report:
    """Verification of a database, or a part of it. Counts are of what was checked."""

    jobs: int = 0
    open_jobs: int = 0
    archived_jobs: int = 0
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
        self.nodes += job.nodes
        self.rollouts += job.rollouts
        self.findings += job.findings[:MOST_FINDINGS]

    def merge(self, part: Report) -> None:
        """Count what another report has."""
        for name in ("jobs", "open_jobs", "archived_jobs", "nodes", "rollouts"):
            setattr(self, name, getattr(self, name) + getattr(part, name))
        self.findings += part.findings


def status_of(findings: Sequence[Finding], *, ended: bool, archived: bool) -> Status:
    """The status of a job with these findings."""
    if findings:
        unknown = all(finding.unknown for finding in findings)
        return Status.UNKNOWN if unknown else Status.BROKEN
    if archived:
        return Status.ARCHIVED
    return Status.VALID if ended else Status.OPEN
