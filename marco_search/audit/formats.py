"""The formats of the audit trail, by the number that a link of the chain carries.

A link's number says by which rules it and its proof were made, and by which they are checked.
A format never changes: another rule (a hashed column, the default of an option, a rule of
ranking) is a new format. What follows from what in a tree is written down in `tree` once more,
apart from the search that wrote it; rewards and votes are the search's own functions, whose older
form has to be kept here once they change.

Format 2 differs from 1 in that nothing is logged after a job's end, except that it was archived;
format 3 has scores from outside and the candidates of forks with each rollout, and new options; in
format 4 texts enter the hashes through salted commitments (marco_search.audit.proofs), and a job
may be redacted.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile

from marco_search import schema
from marco_search.audit import payload
from marco_search.audit.canonical import FIXED
from marco_search.audit.proofs import Kind, Kinds

COMMITS = 4
"""The first format that commits to texts rather than hashing them."""


@dataclass(frozen=True, slots=True)
class Format:
    """The rules of a format, beside those that all have (`numbers`, `tree`)."""

    kinds: Kinds  #: the rows that a proof covers
    late_events: tuple[str, ...] = ()  #: what may be logged after a job's end
    payload: payload.Defaults = payload.DEFAULTS  #: of a request's fields, and of its options


def kinds_of(number: int) -> dict[str, Kind]:
    """The rows that a proof of this format covers."""
    commits = number >= COMMITS
    return {
        name: Kind(
            table,
            job,
            rest[0] if rest else None,
            columns,
            texts=len(schema.redacted_columns(table, name)) if commits else 0,
            fixed=len(list(takewhile(_is_fixed, [(table, c, t) for c, t in columns.items()]))),
        )
        for name, table, (job, *rest) in schema.leaves()
        for columns in [schema.hashed_columns(table, name, number)]
    }


def _is_fixed(column: tuple[str, str, str]) -> bool:
    table, name, of_type = column
    return of_type in FIXED and not schema.TABLES[table].columns[name].nullable


FORMATS = {
    1: Format(kinds_of(1), ("published",)),  # a scheduler noted it a moment late
    2: Format(kinds_of(2)),
    3: Format(kinds_of(3), payload=payload.DEFAULTS_3),
    4: Format(kinds_of(4), payload=payload.DEFAULTS_3),
}
NEWEST = max(FORMATS)
"""What is written now."""
KEYED = tuple(name for name, kind in FORMATS[NEWEST].kinds.items() if kind.key)
"""The kinds of which a job has several rows: each has a column of keys in `proofs`."""
