"""All that is stored about one job, read in one transaction: for drawings and the console.

`read` has everything but the tokens, which are most of the bytes; `tokens` has those of one
node or of all. Both read the views of the schema `audit` only, so that an auditor's login is
enough.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.rows import class_row, dict_row

from marco_search.errors import JobNotFound
from marco_search.jobs import Answer
from marco_search.search.branches import TOP_K
from marco_search.store.db import Conn
from marco_search.store.reads import queries
from marco_search.store.reads.listing import LINES, JobLine
from marco_search.store.reads.queries import TreeRow
from marco_search.store.trail.records import NO_CANDIDATE


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

    event_id: int
    generation: int | None
    event: str
    detail: dict[str, Any]
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """One job. Before its end there are no answers; before its first round, and once it is
    archived, no nodes."""

    job: JobLine
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
    def archived(self) -> str | None:
        """The month whose archive has the tree and the answers, if they are not here any more."""
        return next((e.detail["month"] for e in self.events if e.event == "archived"), None)

    @property
    def vote(self) -> tuple[str | None, float | None]:
        """How the answers are ranked, and the power of a weighted vote; see JobResult."""
        config = next((a.config for a in reversed(self.attempts) if a.config), {})
        return config.get("choice"), config.get("sharpness")

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
    top_texts: list[str | None]  # what they read by themselves; None: not known


_ROLLOUTS = """
    SELECT rollout_id, round, start_id, path, seed, reflect, finish, confidence, path_confidence,
        value, answer, generated_tokens, seconds, error
    FROM audit.rollouts WHERE job_id = %s ORDER BY rollout_id
"""
_ATTEMPTS = """
    SELECT generation, worker, host, pid, runtime, runtime_version, model, revision, seed, config,
        prompt, started_at
    FROM audit.attempts WHERE job_id = %s ORDER BY generation
"""
_EVENTS = """
    SELECT event_id, generation, event, detail, at FROM audit.events WHERE job_id = %s
    ORDER BY event_id
"""
_ANSWERS = """
    SELECT rank, key AS normalised, text, output, thought, confidence, votes, share, rollout_ids
    FROM audit.answers WHERE job_id = %s ORDER BY rank
"""
_ONE_OR_ALL = "job_id = %(job)s AND (%(node)s::int IS NULL OR node_id = %(node)s)"
_TOKENS = f"""
    SELECT node_id, array_agg(token_id ORDER BY position) AS token_ids,
        array_agg(text ORDER BY position) AS token_texts,
        array_agg(logprob ORDER BY position) AS logprobs,
        array_agg(confidence ORDER BY position) AS confidences
    FROM audit.tokens WHERE {_ONE_OR_ALL} GROUP BY node_id ORDER BY node_id
"""  # noqa: S608  # constants
_CANDIDATES = f"""
    SELECT node_id, array_agg(position * {TOP_K} + rank - {TOP_K + 1} ORDER BY position, rank),
        array_agg(token_id ORDER BY position, rank), array_agg(logprob ORDER BY position, rank),
        array_agg(text ORDER BY position, rank)
    FROM audit.alternatives WHERE {_ONE_OR_ALL} GROUP BY node_id
"""  # noqa: S608  # constants


def read(conn: Conn, job_id: UUID) -> JobRecord:
    """The record of a job. Raises JobNotFound."""
    with conn.cursor(row_factory=class_row(JobLine)) as cursor:
        job = cursor.execute(LINES + " WHERE job_id = %s", [job_id]).fetchone()
    if job is None:
        raise JobNotFound(f"no job {job_id}")
    with conn.cursor(row_factory=dict_row) as answer_cursor:
        answers = answer_cursor.execute(_ANSWERS, [job_id]).fetchall()
        reached_by = {row["rank"]: frozenset(row.pop("rollout_ids")) for row in answers}
    with conn.cursor(row_factory=class_row(RolloutRow)) as rollout_cursor:
        rollouts = rollout_cursor.execute(_ROLLOUTS, [job_id]).fetchall()
    with conn.cursor(row_factory=class_row(AttemptRow)) as attempt_cursor:
        attempts = attempt_cursor.execute(_ATTEMPTS, [job_id]).fetchall()
    with conn.cursor(row_factory=class_row(EventRow)) as event_cursor:
        events = event_cursor.execute(_EVENTS, [job_id]).fetchall()
    record = JobRecord(
        job=job,
        reached_by=reached_by,
        answers=tuple(Answer(**row) for row in answers),
        nodes=tuple(queries.tree(conn, job_id)),
        rollouts=tuple(rollouts),
        attempts=tuple(attempts),
        events=tuple(events),
    )
    # Of an archived tree the root alone is left: it is no row.
    return replace(record, nodes=()) if record.archived else record


def tokens(conn: Conn, job_id: UUID, node_id: int | None = None) -> dict[int, NodeTokens]:
    """The tokens of one node, or of all (None), by node id. The root has none."""
    wanted = {"job": job_id, "node": node_id}
    # Where a token has fewer candidates than five, their places stay empty.
    tops: dict[int, tuple[list[int], list[int], list[float], list[str | None]]] = {
        row[0]: row[1:] for row in conn.execute(_CANDIDATES, wanted)
    }
    found = {}
    with conn.cursor(row_factory=dict_row) as cursor:
        for row in cursor.execute(_TOKENS, wanted):
            room = TOP_K * len(row["token_ids"])
            ids, logprobs = [NO_CANDIDATE] * room, [float("-inf")] * room
            texts: list[str | None] = [None] * room
            for place, token_id, logprob, text in zip(
                *tops.get(row["node_id"], ([], [], [], [])), strict=True
            ):
                ids[place], logprobs[place], texts[place] = token_id, logprob, text
            found[row["node_id"]] = NodeTokens(
                **row, top_ids=ids, top_logprobs=logprobs, top_texts=texts
            )
    return found
