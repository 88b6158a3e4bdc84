"""What the commands read from Postgres beyond marco_search.store.queries.

From the views of the schema `audit` only, so that an auditor's login is enough.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from uuid import UUID

from marco_search.errors import AmbiguousJob, InvalidJob, JobNotFound
from marco_search.store import queries
from marco_search.store.connect import Conn
from ops.cli.render.tree import DrawnNode

_SHORTEST = 4  # characters of an id


def find_jobs(conn: Conn, words: Sequence[str], tenant: str) -> list[UUID]:
    """The jobs that these words name: ids, or the beginning or end of an id.

    Ids begin with the time of submission, so jobs of one batch differ at the end first.
    Raises JobNotFound, AmbiguousJob, or InvalidJob for what can't be part of an id.
    """
    return [_find_job(conn, word, tenant) for word in words]


def _find_job(conn: Conn, word: str, tenant: str) -> UUID:
    part = word.strip().lower()
    if not re.fullmatch(r"[0-9a-f-]+", part):
        raise InvalidJob("JOB", f"{word!r} is no job id: an id has digits, a to f, and dashes")
    if len(part) < _SHORTEST:
        raise InvalidJob("JOB", f"{word!r} is too short: give at least {_SHORTEST} characters")
    found: list[tuple[UUID]] = conn.execute(
        "SELECT job_id FROM audit.jobs WHERE tenant = %(tenant)s"
        " AND (job_id::text LIKE %(part)s || '%%' OR job_id::text LIKE '%%' || %(part)s) LIMIT 2",
        {"tenant": tenant, "part": part},
    ).fetchall()
    if not found:
        raise JobNotFound(f"no job {word} of tenant {tenant!r}; `marco status` lists the latest")
    if len(found) > 1:
        raise AmbiguousJob(f"{word} fits several jobs: give more of the id")
    return found[0][0]


def unfinished_jobs(conn: Conn, tenant: str) -> list[UUID]:
    """The tenant's jobs that have not ended, oldest first."""
    query = (
        "SELECT job_id FROM audit.jobs WHERE tenant = %s AND finished_at IS NULL"
        " ORDER BY created_at, job_id"
    )
    return [row[0] for row in conn.execute(query, [tenant])]


def finished_jobs(conn: Conn, tenant: str) -> list[UUID]:
    """The tenant's jobs that have ended, oldest first."""
    query = (
        "SELECT job_id FROM audit.jobs WHERE tenant = %s AND finished_at IS NOT NULL"
        " ORDER BY created_at, job_id"
    )
    return [row[0] for row in conn.execute(query, [tenant])]


def state_counts(conn: Conn, tenant: str) -> dict[str, int]:
    """How many jobs of a tenant are in each state."""
    query = "SELECT state, count(*) FROM audit.jobs WHERE tenant = %s GROUP BY state ORDER BY state"
    return dict(conn.execute(query, [tenant]).fetchall())


def drawn_tree(conn: Conn, job_id: UUID) -> list[DrawnNode]:
    """The nodes of a job's tree, parents before children; none before its first round."""
    return [
        DrawnNode(
            node_id=row.node_id,
            parent_id=row.parent_id,
            action=row.action,
            text=row.text,
            visits=row.visits,
            value=row.value,
        )
        for row in queries.tree(conn, job_id)
    ]


WINNING_PATH = """
SELECT r.path FROM audit.answers AS a
JOIN audit.rollouts AS r ON r.job_id = a.job_id AND r.rollout_id = ANY (a.rollout_ids)
WHERE a.job_id = %s AND a.rank = 1
ORDER BY r.path_confidence DESC, r.rollout_id LIMIT 1
"""


def winning_path(conn: Conn, job_id: UUID) -> tuple[int, ...]:
    """Nodes from the root to the leaf of the best answer's most confident rollout."""
    row = conn.execute(WINNING_PATH, [job_id]).fetchone()
    return tuple(row[0]) if row else ()
