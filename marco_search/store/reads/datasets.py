"""Data sets that were made from stored trees, as readers see them.

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

from marco_search.store.db import Conn, select
from marco_search.store.reads.revisions import Revision


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
