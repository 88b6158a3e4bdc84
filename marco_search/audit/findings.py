"""What verification tells: the rows that do not fit, and a report for each job and for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Finding:
    """A row that does not fit."""

    table: str
    key: str  # what names the row, such as "job 0199..., node_id 4"
    what: str
    expected: str
    found: str
    job_id: UUID | None = None
    unknown: bool = False  # written by a newer version: not wrong, but not checked either

    def __str__(self) -> str:
        return f"{self.table} ({self.key}): {self.what}: expected {self.expected}, {self.there}"

    @property
    def there(self) -> str:
        """What is there, in words."""
        return f"there is {self.found}"


class Status(StrEnum):
    """What verification says about a job."""

    FITS = "fits"  # it has ended, and everything is as it was then
    OPEN = "open"  # it has not ended: its numbers fit, nothing vouches for its rows yet
    ARCHIVED = "archived"  # its tree is in an archive; what is left is as it was
    BROKEN = "broken"  # some row does not fit
    UNKNOWN = "unknown"  # of a format that only a newer version can check


@dataclass(frozen=True, slots=True, kw_only=True)
class JobReport:
    """Verification of one job. `seq` is its link in the chain, None if it has none."""

    job_id: UUID
    status: Status
    seq: int | None
    root: str | None  # hex; the chain's
    nodes: int
    rollouts: int
    findings: tuple[Finding, ...] = ()  # in order; the first is the row to look at


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Verification of a database. Counts are of what was looked at."""

    jobs: int
    open_jobs: int
    archived_jobs: int
    nodes: int
    rollouts: int
    links: int
    seconds: float
    findings: tuple[Finding, ...] = ()  # the first is the row to look at

    @property
    def fits(self) -> bool:
        """True if nothing was found."""
        return not self.findings


def status_of(findings: Sequence[Finding], *, ended: bool, archived: bool) -> Status:
    """The status of a job with these findings."""
    if findings:
        unknown = all(finding.unknown for finding in findings)
        return Status.UNKNOWN if unknown else Status.BROKEN
    if archived:
        return Status.ARCHIVED
    return Status.FITS if ended else Status.OPEN
