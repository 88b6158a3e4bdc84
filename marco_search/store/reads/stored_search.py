"""A job's search as it is stored: what it was asked, its plan, and its records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg.rows import dict_row

from marco_search.engine import SearchPlan
from marco_search.errors import InvalidJob, JobNotFound
from marco_search.jobs import Job
from marco_search.kinds import parse_job
from marco_search.search.tree import Node, Rollout
from marco_search.store import views
from marco_search.store.db import Conn
from marco_search.store.trail import trail

_JOB = """
SELECT j.state, j.payload, j.stop_reason, j.nodes, a.attempts, a.engines,
    CASE WHEN j.config IS NOT NULL THEN jsonb_build_object('config', j.config,
        'prompt', a.prompt, 'model', j.model, 'revision', j.revision) END AS plan
FROM audit.jobs AS j CROSS JOIN LATERAL (
    SELECT count(*) AS attempts,
        (array_agg(b.prompt ORDER BY b.generation))[1] AS prompt,
        array_agg(b.runtime || ' ' || b.runtime_version ORDER BY b.generation) AS engines
    FROM audit.attempts AS b WHERE b.job_id = j.job_id AND b.config IS NOT NULL
) AS a WHERE j.job_id = %s
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSearch:
    """The search of one job.

    `engines` has name and version of the engine of each attempt that began a search, in turn;
    `nodes` (below the root) and `rollouts` are in id order.
    """

    job_id: UUID
    state: str
    job: Job
    plan: SearchPlan
    stop_reason: str | None
    attempts: int
    engines: list[str]
    nodes: list[Node]
    rollouts: list[Rollout]


def load(conn: Conn, job_id: UUID) -> StoredSearch:
    """The search of a job. Raises JobNotFound, and InvalidJob if no tree of it is stored."""
    with conn.cursor(row_factory=dict_row) as cursor:
        row: dict[str, Any] | None = cursor.execute(_JOB, [job_id]).fetchone()
    if row is None:
        raise JobNotFound(f"no job {job_id}")
    nodes, rollouts = trail.load(conn, job_id, schema=views.SCHEMA)
    plan, grown = row.pop("plan"), row.pop("nodes")
    if plan is not None and not rollouts and grown:
        raise InvalidJob("JOB", "its tree is in an archive: there is nothing to compare with")
    if plan is None or not rollouts:
        raise InvalidJob("JOB", f"{row['state']}, and no round of it is kept: nothing to replay")
    return StoredSearch(
        job_id=job_id,
        job=parse_job(row.pop("payload")),
        plan=SearchPlan.from_json(plan),
        nodes=nodes,
        rollouts=rollouts,
        **row,
    )
