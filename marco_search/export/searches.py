"""One job with its whole search, as its trace needs it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.rows import class_row

from marco_search.export.filters import Filter
from marco_search.search.tree import Rollout, Tree
from marco_search.store import views
from marco_search.store.db import Conn
from marco_search.store.trail import trail


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """A job."""

    id: UUID
    tenant: str
    batch_id: UUID | None
    kind: str
    state: str
    subject: str
    config: dict[str, Any] | None
    answer: str | None
    confidence: float | None
    correct: bool | None
    stop_reason: str | None
    error: str | None
    generated_tokens: int
    created_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRow:
    """An attempt."""

    generation: int
    worker: str
    runtime: str | None
    runtime_version: str | None
    model: str | None
    revision: str | None
    prompt: str | None
    started_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRow:
    """A row of the log that an attempt wrote. Of a round: written when it was over."""

    generation: int
    event: str
    round: int | None
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSearch:
    """A job and all that belongs to it."""

    job: JobRow
    attempts: list[AttemptRow]
    events: list[EventRow]
    tree: Tree

    @property
    def prompt(self) -> str:
        """What the model was given; it is the same for all attempts."""
        return next((a.prompt for a in self.attempts if a.prompt is not None), "")

    @property
    def rollouts(self) -> list[Rollout]:
        """In order of their ids."""
        return self.tree.rollouts


def searches(conn: Conn, chosen: Filter) -> Iterator[StoredSearch]:
    """The jobs' searches, one after the other, in order of submission."""
    condition, values = chosen.condition()
    query = f"SELECT j.job_id FROM audit.jobs AS j WHERE {condition} ORDER BY j.job_id"  # noqa: S608
    with conn.cursor("export_jobs") as ids:
        for (job_id,) in ids.execute(query.encode(), values):
            yield _search(conn, job_id)


def _search(conn: Conn, job_id: UUID) -> StoredSearch:
    with conn.cursor(row_factory=class_row(JobRow)) as cursor:
        job = cursor.execute(
            """
            SELECT job_id AS id, tenant, batch_id, kind, state, subject, config, answer, confidence,
                correct, stop_reason, error, generated_tokens, created_at, finished_at
            FROM audit.jobs WHERE job_id = %s
            """,
            [job_id],
        ).fetchone()
    assert job is not None, "a job is never deleted"
    with conn.cursor(row_factory=class_row(AttemptRow)) as of_attempts:
        attempts = of_attempts.execute(
            "SELECT generation, worker, runtime, runtime_version, model, revision, prompt,"
            " started_at FROM audit.attempts WHERE job_id = %s ORDER BY generation",
            [job_id],
        ).fetchall()
    with conn.cursor(row_factory=class_row(EventRow)) as of_events:
        events = of_events.execute(
            "SELECT generation, event, (detail ->> 'round')::int AS round, at"
            " FROM audit.events WHERE job_id = %s AND generation IS NOT NULL ORDER BY event_id",
            [job_id],
        ).fetchall()
    tree = Tree.restore(*trail.load(conn, job_id, schema=views.SCHEMA))
    return StoredSearch(job=job, attempts=attempts, events=events, tree=tree)
