"""The formats of the audit trail, by the number that a link of the chain carries.

A link's number says by which rules it and its proof were made, and by which they are checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from marco_search.audit import v1, v2
from marco_search.audit.evidence import Rows
from marco_search.audit.findings import Finding
from marco_search.audit.proofs import Kinds

NumbersCheck = Callable[
    [UUID, dict[str, Any], Rows, Mapping[int, tuple[int, float]] | None], Iterator[Finding]
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """What of a proof is a matter of its format."""

    kinds: Kinds
    payload: tuple[Mapping[str, Any], Mapping[str, Any]]  # defaults: fields, options
    late_events: tuple[str, ...]
    check_numbers: NumbersCheck


FORMATS = {
    number: Format(
        kinds=rules.KINDS,
        payload=rules.PAYLOAD,
        late_events=rules.LATE_EVENTS,
        check_numbers=rules.check_numbers,
    )
    for number, rules in ((1, v1), (2, v2))
}
NEWEST = max(FORMATS)
"""What is written now."""
