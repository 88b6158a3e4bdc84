"""What verification has in hand about one job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from marco_search.audit.chain import Link
from marco_search.audit.findings import Finding
from marco_search.audit.proofs import Proof, Rows


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
