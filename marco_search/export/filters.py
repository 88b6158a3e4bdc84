"""Which jobs are exported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Conditions on jobs; None and empty ones do not count."""

    jobs: Sequence[UUID] = ()
    batch: UUID | None = None
    tenant: str | None = None
    since: datetime | None = None  # submitted at or after
    until: datetime | None = None  # submitted before

    def condition(self) -> tuple[str, dict[str, Any]]:
        """SQL about a row `j` of audit.jobs, and its parameters."""
        parts, values = ["true"], dict[str, Any]()
        for sql, name, value in (
            ("j.job_id = ANY (%(jobs)s)", "jobs", list(self.jobs)),
            ("j.batch_id = %(batch)s", "batch", self.batch),
            ("j.tenant = %(tenant)s", "tenant", self.tenant),
            ("j.created_at >= %(since)s", "since", self.since),
            ("j.created_at < %(until)s", "until", self.until),
        ):
            if value:
                parts.append(sql)
                values[name] = value
        return " AND ".join(parts), values
