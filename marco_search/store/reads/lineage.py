"""Data sets that were made from stored trees, and revisions of models that trees were made with.

Reads the views of the schema `audit` only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any
from uuid import UUID

from marco_search.errors import QueryRefused
from marco_search.store.db import Conn, select

MOST_PAIRS = 10_000
"""Questions that two revisions are compared on at most: the latest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """A row of the view audit.models: a revision, and what it was fine-tuned from and on."""

    model: str
    revision: str
    method: str | None
    parent_model: str | None
    parent_revision: str | None
    manifests: list[str]  #: SHA-256 of each data set's manifest
    config_sha256: str | None
    seed: int | None
    claims: int
    first_used: datetime
    last_used: datetime

    @property
    def key(self) -> str:
        """What names it in an address."""
        return f"{self.model} {self.revision}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A row of the view audit.revision_pairs: one question, searched with both revisions."""

    tenant: str
    subject: str
    strategy: str
    old_job: UUID
    old_answer: str | None
    old_correct: bool | None  #: None: no answer was expected
    old_confidence: float | None
    old_tokens: int
    new_job: UUID
    new_answer: str | None
    new_correct: bool | None
    new_confidence: float | None
    new_tokens: int
    changed: bool  #: the best answer


def revisions(conn: Conn) -> list[Revision]:
    """All of them, the one used last first."""
    return select(conn, Revision, "audit.models ORDER BY last_used DESC, model, revision")


def named_revision(known: list[Revision], word: str) -> Revision:
    """The revision with this name, beginning of a hash, or both with a space between.

    Raises QueryRefused if none matches or several do.
    """
    found = {
        one.key: one
        for one in known
        if word in (one.model, one.key)
        or (len(word) >= 4 and (one.revision.startswith(word) or one.key.startswith(word)))
    }
    if len(found) == 1:
        return next(iter(found.values()))
    several = "several revisions, give the beginning of one's hash" if found else "no revision"
    among = list(found.values()) or known
    names = ", ".join(f"{one.model} {one.revision[:12]}" for one in among[:20])
    raise QueryRefused(
        f"{word!r} matches {several}; jobs were searched with: {names or 'none yet'}"
    )


def pairs(conn: Conn, old: Revision, new: Revision, *, tenant: str | None = None) -> list[Pair]:
    """The questions that both revisions were asked, the latest MOST_PAIRS of them first."""
    source = """audit.revision_pairs
        WHERE old_model = %(old_model)s AND old_revision = %(old)s
        AND new_model = %(new_model)s AND new_revision = %(new)s
        AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s)
        ORDER BY new_job DESC LIMIT %(most)s"""
    given = {
        "old_model": old.model, "old": old.revision,
        "new_model": new.model, "new": new.revision, "tenant": tenant, "most": MOST_PAIRS,
    }  # fmt: skip
    return select(conn, Pair, source, given)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """A row of the view audit.datasets."""

    dataset_id: UUID
    tenant: str | None  #: None: made from all tenants' jobs
    name: str
    kind: str  #: sft or preference
    manifest: dict[str, Any]
    manifest_sha256: str
    samples: int
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplePath:
    """A sample, or one side of a pair: a path of a stored tree."""

    sample_id: str
    role: str  #: sample, chosen or rejected
    tenant: str
    job_id: UUID
    subject: str
    rollout_id: int
    node_ids: list[int]
    answer: str | None  #: what it reached
    text: str | None  #: None: the tree is archived


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplePage:
    """A data set with some of its samples, by id, and the revisions that were trained on it."""

    data_set: DataSet
    samples: list[list[SamplePath]]  #: of a sample one, of a pair both sides
    earlier: bool  #: whether there are samples before these
    later: bool
    trained: list[Revision]


def data_sets(
    conn: Conn,
    tenant: str | None = None,
    *,
    dataset_id: UUID | None = None,
    job_id: UUID | None = None,
    offset: int = 0,
    limit: int | None = None,
) -> list[DataSet]:
    """The data sets made of a tenant's jobs, or all (None), the latest first.

    With `job_id` only those that have samples of this job.
    """
    source = """audit.datasets
        WHERE (%(tenant)s::text IS NULL OR tenant = %(tenant)s)
        AND (%(id)s::uuid IS NULL OR dataset_id = %(id)s)
        AND (%(job)s::uuid IS NULL OR dataset_id IN (
            SELECT dataset_id FROM audit.dataset_samples WHERE job_id = %(job)s))
        ORDER BY created_at DESC, dataset_id LIMIT %(limit)s OFFSET %(offset)s"""
    given = {"tenant": tenant, "id": dataset_id, "job": job_id, "limit": limit, "offset": offset}
    return select(conn, DataSet, source, given)


def named(conn: Conn, word: str) -> DataSet | None:
    """The latest data set with this id or beginning of its manifest's hash; None: none has."""
    hexadecimal = re.fullmatch(r"[0-9a-f]{8,64}", word.replace("-", ""))
    found = hexadecimal and select(
        conn,
        DataSet,
        "audit.datasets WHERE dataset_id::text = %(word)s OR manifest_sha256 LIKE %(word)s || '%%'"
        " ORDER BY created_at DESC LIMIT 1",
        {"word": word},
    )
    return found[0] if found else None


_SAMPLES = """(
    SELECT s.*, j.subject FROM audit.dataset_samples AS s JOIN audit.jobs AS j USING (job_id)
    WHERE s.dataset_id = %(id)s AND s.sample_id = ANY (ARRAY(
        SELECT DISTINCT sample_id FROM audit.dataset_samples
        WHERE dataset_id = %(id)s AND sample_id {sign} %(place)s
        ORDER BY sample_id {way} LIMIT %(limit)s
    ))
) AS samples ORDER BY sample_id, role"""


def sample_page(
    conn: Conn, data_set: DataSet, *, after: str = "", before: str | None = None, limit: int = 25
) -> SamplePage:
    """The `limit` samples after one of this id (the first: after none), or before one."""
    back = before is not None
    source = _SAMPLES.format(sign="<" if back else ">", way="DESC" if back else "ASC")
    given = {"id": data_set.dataset_id, "place": before if back else after, "limit": limit + 1}
    rows: Iterable[SamplePath] = select(conn, SamplePath, source, given)
    found = [list(sides) for _, sides in groupby(rows, key=lambda row: row.sample_id)]
    more = len(found) > limit
    shown = found[-limit:] if back else found[:limit]
    trained = select(
        conn,
        Revision,
        "audit.models WHERE %s = ANY (manifests) ORDER BY last_used DESC LIMIT 20",
        [data_set.manifest_sha256],
    )
    return SamplePage(
        data_set=data_set,
        samples=shown,
        earlier=more if back else after != "",
        later=back or more,
        trained=trained,
    )
