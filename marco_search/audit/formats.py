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

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from marco_search import schema
from marco_search.audit.proofs import Kind, Kinds

# What a request's hash leaves out: the defaults of the version that wrote it.
FIELDS: Mapping[str, Any] = {
    "priority": "normal", "deadline": None, "expires_in_s": None, "metadata": {},
    "system_prompt": None, "expected": None, "source": "zh", "target": "en",
    "style": "colloquial", "endpoint": None,
}  # fmt: skip
OPTIONS: Mapping[str, Any] = {
    "strategy": "auto", "rollouts": 16, "max_tokens": None, "max_seconds": None,
    "max_new_tokens": 1024, "temperature": None, "seed": 0, "reflection": None, "answers": 3,
    "early_stop": True, "exploration": None, "branching": None, "width": None,
    "selection": None, "value": None,
}  # fmt: skip
Defaults = tuple[Mapping[str, Any], Mapping[str, Any]]
DEFAULTS: Defaults = (FIELDS, OPTIONS)
DEFAULTS_3: Defaults = (
    FIELDS, {**OPTIONS, "reward": None, "verifier": None, "profile": None, "overrides": {}},
)  # fmt: skip
_MISSING: Final = object()
_WHOLE_FROM = 10**16
"""From here on Python writes 1e+16, and jsonb the same number without an exponent."""

COMMITS = 4
"""The first format that commits to texts rather than hashing them."""


@dataclass(frozen=True, slots=True)
class Format:
    """The rules of a format, beside those that all have (`numbers`, `tree`)."""

    kinds: Kinds  #: the rows that a proof covers
    late_events: tuple[str, ...] = ()  #: what may be logged after a job's end
    payload: Defaults = DEFAULTS  #: of a request's fields, and of its options


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
        )
        for name, table, (job, *rest) in schema.leaves()
        for columns in [schema.hashed_columns(table, name, number)]
    }


FORMATS = {
    1: Format(kinds_of(1), ("published",)),  # a scheduler noted it a moment late
    2: Format(kinds_of(2)),
    3: Format(kinds_of(3), payload=DEFAULTS_3),
    4: Format(kinds_of(4), payload=DEFAULTS_3),
}
assert all(c.since in FORMATS for t in schema.TABLES.values() for c in t.columns.values()), (
    "a column that is hashed since a format needs that format"
)
NEWEST = max(FORMATS)
"""What is written now."""
KEYED = tuple(name for name, kind in FORMATS[NEWEST].kinds.items() if kind.key)
"""The kinds of which a job has several rows: each has a column of keys in `proofs`."""


def payload_hashes(
    payload: str, expected: str | None, fields: Mapping[str, Any], options: Mapping[str, Any]
) -> Iterator[str]:
    """The hashes (hex) that a stored payload may have: long whole numbers may have been floats.

    They leave out tenant, idempotency key and what has its default. Raises ValueError for what is
    not an object.
    """
    yield _hash(json.loads(payload), expected, fields, options)
    yield _hash(json.loads(payload, parse_int=_as_float), expected, fields, options)


def _as_float(digits: str) -> float | int:
    value = int(digits)
    return float(value) if abs(value) >= _WHOLE_FROM else value


def _hash(
    data: Any, expected: str | None, fields: Mapping[str, Any], options: Mapping[str, Any]
) -> str:
    if not isinstance(data, dict):
        raise ValueError("not an object")
    kept = _without(data | {"expected": expected}, fields)
    given = data.get("options")
    kept["options"] = _without(given, options) if isinstance(given, dict) else given
    if not kept["options"]:
        del kept["options"]
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _without(data: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in data.items() if v != defaults.get(k, _MISSING)}
