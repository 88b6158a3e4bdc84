"""Format 1: what version 0.1.0 hashed, and what follows from what. Nothing here may change.

All rules are written down here once more, apart from the search that wrote the rows: a later
version may search, vote and read answers by other rules, and these rows still fit. Whatever
changes (a column, the name or the default of an option, a rule of ranking) is a new format.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from uuid import UUID

from marco_search.audit.evidence import Rows
from marco_search.audit.findings import Finding
from marco_search.audit.v1 import payload
from marco_search.audit.v1.columns import KINDS

__all__ = ["KINDS", "LATE_EVENTS", "PAYLOAD", "check_numbers"]

PAYLOAD = (payload.FIELDS, payload.OPTIONS)

LATE_EVENTS = ("published",)
"""What may be logged after the end: a sweep noted it a moment late."""


def check_numbers(
    job_id: UUID,
    job: dict[str, Any],
    rows: Rows,
    visits: Mapping[int, tuple[int, float]] | None,
) -> Iterator[Finding]:
    """See `marco_search.audit.v1.numbers`."""
    # It loads NumPy, and whoever ends a job loads this package: producers too.
    from marco_search.audit.v1 import numbers

    return numbers.check_numbers(job_id, job, rows, visits)
