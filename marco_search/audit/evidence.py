"""What verification has in hand about one job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from marco_search.audit.chain import Link
from marco_search.audit.findings import Finding
from marco_search.audit.proofs import Proof, Row

Rows = Mapping[str, Sequence[Row]]
"""A job's rows by kind, each in key order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """One end of a job: its link, the proof kept with it, what is wrong with the link itself."""

    link: Link
    proof: Proof | None
    finding: Finding | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Archived:
    """An archive that covers the job."""

    month: str
    root: bytes  # the SHA-256 of its list, as the chain has it
    at: datetime  # of its link


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that is stored about one job, in the columns of each format that its links have."""

    job_id: UUID
    rows: Mapping[int, Rows]  # by format
    sealed: Sequence[Sealed] = ()  # by seq
    archives: Sequence[Archived] = ()
    visits: Mapping[int, tuple[int, float]] | None = field(default=None)  # as node_stats shows
