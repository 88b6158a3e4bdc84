"""What readers see: the state of jobs, their results, their trees.

Reads the views of the schema `audit` only, so that an auditor's login is enough.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.rows import class_row, dict_row
from pydantic import BaseModel, ConfigDict

from marco_search.errors import JobNotFound
from marco_search.jobs import Answer, JobResult
from marco_search.store.db import Conn
from marco_search.store.queue.states import FINAL, JobState, shown_state


class JobStatus(BaseModel):
    """Where a job stands. The counts grow with every round; seconds are of searching."""

    model_config = ConfigDict(frozen=True)

    job_id: UUID
    tenant: str
    batch_id: UUID | None
    kind: str
    state: JobState
    subject: str  # the question, text or prompt
    strategy: str
    priority: int  # 0 is high, 3 normal, 6 low
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    run_after: datetime
    cancel_requested_at: datetime | None
    expires_at: datetime | None = None  # its deadline
    paused_at: datetime | None = None  # it or its tenant
    attempts: int
    lease_owner: str | None
    rounds: int
    rollouts: int
    rollout_budget: int | None  # None: not begun
    nodes: int
    generated_tokens: int
    seconds: float
    answer: str | None
    confidence: float | None
    share: float | None = None  # of the best answer in the vote, 0 to 1
    confidence_quantile: float | None = None  # among its model's latest jobs, 0 to 1
    expected: str | None
    correct: bool | None
    stop_reason: str | None
    model: str | None
    error_type: str | None
    error: str | None

    @property
    def final(self) -> bool:
        """True in a state that the job never leaves."""
        return self.state in FINAL

    @property
    def shown_state(self) -> str:
        """The state; "paused" while it waits for somebody to let it go on."""
        return shown_state(self.state, self.paused_at)


_STATUS = f"SELECT {', '.join(JobStatus.model_fields)} FROM audit.jobs"  # noqa: S608  # constants


def statuses(conn: Conn, job_ids: Iterable[UUID], *, tenant: str | None = None) -> list[JobStatus]:
    """The status of each job, in the order asked. Raises JobNotFound for the first unknown."""
    wanted = list(job_ids)
    with conn.cursor(row_factory=class_row(JobStatus)) as cursor:
        rows = cursor.execute(_STATUS + _MINE, {"ids": wanted, "tenant": tenant}).fetchall()
    found = {row.job_id: row for row in rows}
    return [found[i] if i in found else _unknown(i, tenant) for i in wanted]


_MINE = " WHERE job_id = ANY (%(ids)s) AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s)"


def _unknown(job_id: UUID, tenant: str | None) -> Any:
    raise JobNotFound(f"no job {job_id}" + (f" of tenant {tenant!r}" if tenant else ""))


def recent(
    conn: Conn, *, tenant: str | None = None, state: str | None = None, limit: int = 20
) -> list[JobStatus]:
    """The newest jobs, newest first."""
    with conn.cursor(row_factory=class_row(JobStatus)) as cursor:
        return cursor.execute(
            _STATUS + " WHERE (%(tenant)s::text IS NULL OR tenant = %(tenant)s)"
            " AND (%(state)s::text IS NULL OR state = %(state)s)"
            " ORDER BY created_at DESC, job_id DESC LIMIT %(limit)s",
            {"tenant": tenant, "state": state, "limit": limit},
        ).fetchall()


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingModel:
    """A model that queued jobs were begun on, and that no worker had lately."""

    model: str
    revision: str
    jobs: int  # that wait for it

    def __str__(self) -> str:
        wait = "1 job waits" if self.jobs == 1 else f"{self.jobs:,} jobs wait"
        return f"{wait} for a worker with model {self.model} (revision {self.revision[:12]})"


def missing_models(conn: Conn, *, tenant: str | None = None) -> list[MissingModel]:
    """The models that begun jobs wait for; only those of a tenant's jobs, if given."""
    with conn.cursor(row_factory=class_row(MissingModel)) as cursor:
        return cursor.execute(
            "SELECT model, revision, count(*) AS jobs FROM audit.jobs"
            " WHERE state = 'queued' AND parked_at IS NOT NULL"
            " AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s)"
            " GROUP BY model, revision ORDER BY model, revision",
            {"tenant": tenant},
        ).fetchall()


def results(conn: Conn, job_ids: Iterable[UUID], *, tenant: str | None = None) -> list[JobResult]:
    """The results of those of the jobs that have ended, in any order."""
    with conn.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(
            "SELECT job_id, kind, state, strategy, stop_reason, rollouts, nodes,"  # noqa: S608
            " generated_tokens, prompt_tokens, cached_tokens, seconds, model, revision, expected,"
            " correct, error_type, error, confidence_quantile,"
            " config ->> 'choice' AS vote, (config ->> 'sharpness')::float8 AS sharpness"
            " FROM audit.jobs" + _MINE + " AND finished_at IS NOT NULL",
            {"ids": list(job_ids), "tenant": tenant},
        ).fetchall()
        answers: dict[UUID, list[Answer]] = {row["job_id"]: [] for row in rows}
        for answer in cursor.execute(
            "SELECT job_id, rank, key AS normalised, text, output, thought, confidence, votes,"
            " share FROM audit.answers WHERE job_id = ANY (%s) ORDER BY rank",
            [list(answers)],
        ):
            answers[answer.pop("job_id")].append(Answer(**answer))
    return [_result(row, answers[row["job_id"]]) for row in rows]


def _result(row: dict[str, Any], answers: list[Answer]) -> JobResult:
    if row["state"] == JobState.SUCCEEDED:
        # The error of an attempt before the one that made it.
        row["error_type"] = row["error"] = None
    return JobResult(job_id=str(row.pop("job_id")), answers=tuple(answers), **row)


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeRow:
    """One node of a search tree as it is shown. Node 0 is the root, the prompt."""

    node_id: int
    parent_id: int | None
    depth: int
    round: int
    action: str
    text: str
    tokens: int
    confidence: float | None  # mean c_i of its tokens
    terminal: bool
    visits: int
    value: float | None  # Q; None before the first visit


def tree(conn: Conn, job_id: UUID) -> list[TreeRow]:
    """The nodes of a job's tree in id order, root first; none before its first round."""
    # Before Postgres has counted the rows of a search that just ran, it expects a handful, and
    # would sum all rollouts again for each node: seconds for a large tree.
    conn.execute("SET LOCAL enable_nestloop = off")
    with conn.cursor(row_factory=class_row(TreeRow)) as cursor:
        rows = cursor.execute(
            "SELECT node_id, parent_id, depth, round, action, text, tokens, confidence, terminal,"
            " visits, value FROM audit.tree WHERE job_id = %s ORDER BY node_id",
            [job_id],
        ).fetchall()
    conn.execute("SET LOCAL enable_nestloop TO DEFAULT")
    return rows
