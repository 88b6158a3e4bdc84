"""Jobs by the page, and sums over batches and tenants: what the console lists.

Reads the views of the schema `audit` only, so that an auditor's login is enough.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from psycopg.rows import class_row, dict_row
from pydantic import BaseModel, ConfigDict

from marco_search.store.db import Conn
from marco_search.store.queue.states import shown_state

LOW_QUANTILE = 0.1
"""Confidences in this part of their model's own are the lowest."""
NARROW_SHARE = 0.6
"""A best answer with less of the vote than this won narrowly."""


class JobLine(BaseModel):
    """A job as the view audit.jobs has it: columns of the same names."""

    model_config = ConfigDict(frozen=True)

    job_id: UUID
    tenant: str
    batch_id: UUID | None
    kind: str
    state: str
    subject: str  # the question, text or prompt
    strategy: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    paused_at: datetime | None = None  # it or its tenant
    attempts: int
    rounds: int
    rollouts: int
    rollout_budget: int | None  # None: not begun
    nodes: int
    generated_tokens: int
    seconds: float  # of searching
    answer: str | None
    confidence: float | None
    share: float | None = None  # of the vote, 0 to 1
    confidence_quantile: float | None = None  # among its model's latest jobs, 0 to 1
    expected: str | None
    correct: bool | None
    stop_reason: str | None
    model: str | None
    revision: str | None
    seed: int | None
    error_type: str | None
    error: str | None

    @property
    def final(self) -> bool:
        """True in a state that the job does not leave by itself."""
        return self.finished_at is not None

    @property
    def shown_state(self) -> str:
        """The state; "paused" while it waits for somebody to let it go on."""
        return shown_state(self.state, self.paused_at)


LINES = f"SELECT {', '.join(JobLine.model_fields)} FROM audit.jobs"  # noqa: S608  # constants
"""SELECT of a JobLine, without a condition."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which jobs are listed. None: any. Ids sort by time of submission, so a page is told by
    the job that it starts after."""

    state: str | None = None
    kind: str | None = None
    tenant: str | None = None
    batch: UUID | None = None
    text: str | None = None  # in the question, in any case; or a part of the id
    doubt: Literal["low", "narrow"] | None = None  # see LOW_QUANTILE, NARROW_SHARE
    before: UUID | None = None  # older than this job
    after: UUID | None = None  # newer than this job


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPage:
    """Jobs, newest first, and whether there are more on either side."""

    jobs: tuple[JobLine, ...]
    newer: bool
    older: bool


_WHERE = """
    WHERE (%(state)s::text IS NULL OR state = %(state)s)
    AND (%(kind)s::text IS NULL OR kind = %(kind)s)
    AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s)
    AND (%(batch)s::uuid IS NULL OR batch_id = %(batch)s)
    AND (%(text)s::text IS NULL OR subject ILIKE %(text)s OR job_id::text LIKE %(text)s)
    AND (%(low)s::float8 IS NULL OR confidence_quantile < %(low)s)
    AND (%(narrow)s::float8 IS NULL OR share < %(narrow)s)
"""
_OLDER = (
    " AND (%(before)s::uuid IS NULL OR job_id < %(before)s) ORDER BY job_id DESC LIMIT %(limit)s"
)
_NEWER = " AND job_id > %(after)s ORDER BY job_id LIMIT %(limit)s"


def page(conn: Conn, wanted: JobFilter, *, limit: int = 50) -> JobPage:
    """The newest `limit` jobs that fit, or those next to `wanted.before` or `wanted.after`."""
    given = {
        "state": wanted.state,
        "kind": wanted.kind,
        "tenant": wanted.tenant,
        "batch": wanted.batch,
        "text": None if wanted.text is None else f"%{_literal(wanted.text)}%",
        "low": LOW_QUANTILE if wanted.doubt == "low" else None,
        "narrow": NARROW_SHARE if wanted.doubt == "narrow" else None,
        "before": wanted.before,
        "after": wanted.after,
        "limit": limit + 1,
    }
    forward = wanted.after is not None
    with conn.cursor(row_factory=class_row(JobLine)) as cursor:
        query = LINES + _WHERE + (_NEWER if forward else _OLDER)
        found = cursor.execute(query, given).fetchall()
    more, jobs = len(found) > limit, found[:limit]
    if forward:
        return JobPage(jobs=tuple(jobs[::-1]), newer=more, older=True)
    return JobPage(jobs=tuple(jobs), newer=wanted.before is not None, older=more)


def _literal(text: str) -> str:
    """`text` in a LIKE pattern, where it stands for itself."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


@dataclass(slots=True, kw_only=True)
class Totals:
    """Sums over the jobs of one batch or tenant."""

    name: str
    states: dict[str, int] = field(default_factory=dict)  # jobs in each state
    jobs: int = 0
    right: int = 0
    compared: int = 0  # jobs with an expected answer that have ended
    rollouts: int = 0
    nodes: int = 0
    generated_tokens: int = 0
    seconds: float = 0.0  # of searching
    confidence: float | None = None  # mean of the best answers'
    first: datetime | None = None  # submission
    last: datetime | None = None


_SUMS = """
    SELECT {key}::text AS name, state, count(*) AS jobs,
        count(*) FILTER (WHERE correct) AS right, count(correct) AS compared,
        sum(rollouts)::bigint AS rollouts, sum(nodes)::bigint AS nodes,
        sum(generated_tokens)::bigint AS generated_tokens, sum(seconds) AS seconds,
        count(confidence) AS scored, coalesce(sum(confidence), 0) AS confidence,
        min(created_at) AS first, max(created_at) AS last
    FROM audit.jobs {where} GROUP BY 1, 2 ORDER BY 1, 2
"""
_LATEST_BATCHES = """
    WHERE batch_id IN (SELECT batch_id FROM audit.jobs WHERE batch_id IS NOT NULL
        GROUP BY batch_id ORDER BY max(created_at) DESC LIMIT %(limit)s)
"""


def tenants(conn: Conn) -> list[Totals]:
    """Sums of every tenant, by name."""
    return _sums(conn, _SUMS.format(key="tenant", where=""), {})


def batches(conn: Conn, *, limit: int = 200) -> list[Totals]:
    """Sums of the latest batches, newest first; `name` is the batch's id."""
    query = _SUMS.format(key="batch_id", where=_LATEST_BATCHES)
    found = _sums(conn, query, {"limit": limit})
    return sorted(found, key=lambda t: t.last.timestamp() if t.last else 0.0, reverse=True)


def _sums(conn: Conn, query: str, given: dict[str, Any]) -> list[Totals]:
    found: dict[str, Totals] = {}
    scored: dict[str, tuple[int, float]] = {}
    with conn.cursor(row_factory=dict_row) as cursor:
        for row in cursor.execute(query.encode(), given):
            total = found.setdefault(row["name"], Totals(name=row["name"]))
            total.states[row["state"]] = row["jobs"]
            for name in ("jobs", "right", "compared", "rollouts", "nodes", "generated_tokens"):
                setattr(total, name, getattr(total, name) + row[name])
            total.seconds += row["seconds"]
            total.first = min(total.first or row["first"], row["first"])
            total.last = max(total.last or row["last"], row["last"])
            count, confidence = scored.get(total.name, (0, 0.0))
            scored[total.name] = count + row["scored"], confidence + row["confidence"]
    for name, (count, confidence) in scored.items():
        found[name].confidence = confidence / count if count else None
    return list(found.values())
