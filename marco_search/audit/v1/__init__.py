"""Format 1: what follows from what in the rows of a job, as version 0.1.0 wrote them.

All rules are written down here once more, apart from the search that wrote the rows: a later
version may search, vote and read answers by other rules, and these rows are still valid.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from uuid import UUID

from marco_search.audit.findings import Finding
from marco_search.audit.proofs import Kinds, Rows


def check_numbers(
    job_id: UUID,
    job: dict[str, Any],
    rows: Rows,
    visits: Mapping[int, tuple[int, float]] | None,
    kinds: Kinds,
) -> Iterator[Finding]:
    """What does not agree. `job`: request and outcome by column; `visits`: as the view shows."""
    # It loads NumPy, and each producer loads this package.
    from marco_search.audit.v1 import numbers

    return numbers.check_numbers(job_id, job, rows, visits, kinds)
