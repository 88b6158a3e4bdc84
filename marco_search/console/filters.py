"""The filters of the list of jobs, from the query string and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args
from urllib.parse import urlencode
from uuid import UUID

from marco_search.errors import QueryRefused
from marco_search.jobs.results import JobKind
from marco_search.store.queue.states import JobState
from marco_search.store.reads.listing import LOW_QUANTILE, NARROW_SHARE, JobFilter

Doubt = Literal["low", "narrow"]

STATES = tuple(str(state) for state in JobState)
KINDS: tuple[str, ...] = get_args(JobKind)
DOUBTS: dict[Doubt, str] = {
    "low": f"lowest {LOW_QUANTILE:.0%} of the model's confidences",
    "narrow": f"less than {NARROW_SHARE:.0%} of the vote",
}
_LONGEST = 200  # characters of a value


def from_query(query: Mapping[str, str]) -> JobFilter:
    """The filter that these parameters ask for; empty ones ask for nothing.

    Raises QueryRefused for a value that none can have.
    """
    given = {name: value.strip() for name, value in query.items() if value.strip()}
    for name, value in given.items():
        if len(value) > _LONGEST or "\x00" in value:
            raise QueryRefused(f"{name}: at most {_LONGEST} characters, none of them NUL")
    doubt = _one_of("doubt", given, tuple(DOUBTS))
    return JobFilter(
        state=_one_of("state", given, STATES),
        kind=_one_of("kind", given, KINDS),
        tenant=given.get("tenant"),
        batch=_uuid("batch", given),
        text=given.get("text"),
        doubt="low" if doubt == "low" else "narrow" if doubt == "narrow" else None,
        before=_uuid("before", given),
        after=_uuid("after", given),
    )


def to_query(wanted: JobFilter, **other: object) -> str:
    """The query string of a filter with some fields replaced; "" for none at all."""
    names = ("state", "kind", "tenant", "batch", "text", "doubt", "before", "after")
    values = {name: other.get(name, getattr(wanted, name)) for name in names}
    given = {name: str(value) for name, value in values.items() if value is not None}
    return f"?{urlencode(given)}" if given else ""


def _one_of(name: str, given: Mapping[str, str], known: tuple[str, ...]) -> str | None:
    value = given.get(name)
    if value is not None and value not in known:
        raise QueryRefused(f"{name}: must be one of {', '.join(known)}")
    return value


def _uuid(name: str, given: Mapping[str, str]) -> UUID | None:
    value = given.get(name)
    if value is None:
        return None
    try:
        return UUID(value)
    except ValueError:
        raise QueryRefused(f"{name}: must be a whole id") from None
