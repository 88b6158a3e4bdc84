"""All that is stored about one job, read in one transaction: for the pictures and the console.

`read` has everything but the tokens, which are most of the bytes; `tokens` has those of one
node or of all.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.rows import class_row

from marco_search.jobs import Answer
from marco_search.search.branches import TOP_K
from marco_search.store import queries
from marco_search.store.connect import Conn
from marco_search.store.queries import JobStatus, TreeRow
from marco_search.store.records import NO_CANDIDATE


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRow:
    """One rollout as a reader sees it."""

    rollout_id: int
    round: int
    start_id: int
    path: list[int]  # root first
    seed: int
    reflect: str
    finish: str
    confidence: float
    path_confidence: float
    value: float
    answer: str | None  # key of the answer it reached
    generated_tokens: int
    seconds: float
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRow:
    """One claim of the job by a worker."""

    generation: int
    worker: str
    host: str
    pid: int
    runtime: str | None
    runtime_version: str | None
    model: str | None
    revision: str | None
    seed: int | None
    config: dict[str, Any] | None
    prompt: str | None
    started_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRow:
    """One line of the audit log."""

    id: int
    generation: int | None
    event: str
    detail: dict[str, Any]
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """One job. Before its end there are no answers; before its first round no nodes."""

    status: JobStatus
    answers: tuple[Answer, ...]  # best first
    reached_by: dict[int, frozenset[int]]  # rank of an answer: ids of its rollouts
    nodes: tuple[TreeRow, ...]  # root first, in id order: parents before children
    rollouts: tuple[RolloutRow, ...]  # in id order
    attempts: tuple[AttemptRow, ...]
    events: tuple[EventRow, ...]

    def reaching(self, answer: Answer) -> tuple[RolloutRow, ...]:
        """The rollouts that reach an answer."""
        ids = self.reached_by.get(answer.rank, frozenset())
        return tuple(rollout for rollout in self.rollouts if rollout.rollout_id in ids)

    @property
    def winning_path(self) -> tuple[int, ...]:
        """Nodes from the root to the leaf of the best answer's most confident rollout."""
        found = self.reaching(self.answers[0]) if self.answers else ()
        if not found:
            return ()
        return tuple(min(found, key=lambda r: (-r.path_confidence, r.rollout_id)).path)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTokens:
    """The generated tokens of one node: lists of the same length, and five candidates each."""

    node_id: int
    token_ids: list[int]
    token_texts: list[str]
    logprobs: list[float]  # natural logs
    confidences: list[float]  # c_i
    top_ids: list[int]  # TOP_K for each token in turn
    top_logprobs: list[float]

    def candidates(self, i: int) -> list[tuple[int, float]]:
        """(token id, log-prob) of the best candidates in the place of token `i`, best first."""
        part = slice(i * TOP_K, (i + 1) * TOP_K)
        pairs = zip(self.top_ids[part], self.top_logprobs[part], strict=True)
        return [pair for pair in pairs if pair[0] != NO_CANDIDATE]


_ROLLOUTS = """
    SELECT rollout_id, round, start_id, path, seed, reflect, finish, confidence, path_confidence,
        value, answer, generated_tokens, seconds, error
    FROM rollouts WHERE job_id = %s ORDER BY rollout_id
"""
_ATTEMPTS = """
    SELECT generation, worker, host, pid, runtime, runtime_version, model, revision, seed, config,
        prompt, started_at
    FROM attempts WHERE job_id = %s ORDER BY generation
"""
_EVENTS = "SELECT id, generation, event, detail, at FROM audit_log WHERE job_id = %s ORDER BY id"
_TOKENS = """
    SELECT node_id, token_ids, token_texts, logprobs, confidences, top_ids, top_logprobs
    FROM nodes WHERE job_id = %(job)s AND (%(node)s::int IS NULL OR node_id = %(node)s)
    ORDER BY node_id
"""


def read(conn: Conn, job_id: UUID) -> JobRecord:
    """The record of a job. Raises JobNotFound."""
    (status,) = queries.statuses(conn, [job_id])
    with conn.cursor(row_factory=class_row(RolloutRow)) as cursor:
        rollouts = cursor.execute(_ROLLOUTS, [job_id]).fetchall()
    with conn.cursor(row_factory=class_row(AttemptRow)) as attempts_cursor:
        attempts = attempts_cursor.execute(_ATTEMPTS, [job_id]).fetchall()
    with conn.cursor(row_factory=class_row(EventRow)) as events_cursor:
        events = events_cursor.execute(_EVENTS, [job_id]).fetchall()
    reached_by = conn.execute("SELECT rank, rollout_ids FROM answers WHERE job_id = %s", [job_id])
    return JobRecord(
        status=status,
        reached_by={rank: frozenset(ids) for rank, ids in reached_by},
        answers=queries.answers(conn, [job_id]).get(job_id, ()),
        nodes=tuple(queries.tree(conn, job_id)),
        rollouts=tuple(rollouts),
        attempts=tuple(attempts),
        events=tuple(events),
    )


def tokens(conn: Conn, job_id: UUID, node_id: int | None = None) -> dict[int, NodeTokens]:
    """The tokens of one node, or of all (None), by node id. The root has none."""
    with conn.cursor(row_factory=class_row(NodeTokens)) as cursor:
        rows = cursor.execute(_TOKENS, {"job": job_id, "node": node_id}).fetchall()
    return {row.node_id: row for row in rows}


def revision(conn: Conn, job_id: UUID) -> str | None:
    """The revision of the weights that a job is searched with; None before it was begun."""
    row = conn.execute("SELECT plan ->> 'revision' FROM jobs WHERE id = %s", [job_id]).fetchone()
    return row[0] if row else None
