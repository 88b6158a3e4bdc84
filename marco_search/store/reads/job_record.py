"""Everything stored about one job, read in one transaction: for drawings, reports, the console.

`read` has everything but the tokens, which are most of the bytes; `tokens` has those. Both read
the views of the schema `audit` only, so that an auditor's login is enough.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypedDict
from uuid import UUID

from psycopg.rows import dict_row

from marco_search.audit import redaction
from marco_search.engine import SearchPlan
from marco_search.errors import InvalidJob
from marco_search.jobs import Answer, Job, explained
from marco_search.kinds import parse_job
from marco_search.search.actions import Action
from marco_search.search.tree import Node, Rollout, Shortfalls
from marco_search.store import views
from marco_search.store.db import Conn, M, select
from marco_search.store.queue.states import not_found
from marco_search.store.reads.queries import JobStatus, answers
from marco_search.store.trail import trail, vocabulary


class Fork(TypedDict):
    """What the model took at a position, and the candidate that a fork begins with instead."""

    taken: str
    taken_share: float  #: of the best candidates there, 0 to 1
    passed_over: str
    passed_over_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeRow:
    """One node of a search tree. Node 0 is the root, the prompt."""

    node_id: int
    parent_id: int | None
    depth: int
    round: int
    action: str
    text: str
    tokens: int
    confidence: float | None  #: mean c_i of its tokens
    terminal: bool
    visits: int
    value: float | None  #: Q; None before the first visit
    fork: Fork | None = None  #: if a candidate was put in where the node begins


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
    training: dict[str, Any] | None = None  #: see runtime.base.Training


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
    """One job. It has answers once it has ended, and nodes from its first round until it is
    archived.
    """

    job: JobStatus
    payload: dict[str, Any]  #: the request as it was submitted, without the expected answer
    answers: tuple[Answer, ...]  #: best first
    best_rollouts: tuple[int | None, ...]  #: whose texts the answers are; None: archived
    nodes: tuple[TreeRow, ...]  #: in id order: root first, parents before children
    rollouts: tuple[Rollout, ...]  #: in id order
    attempts: tuple[AttemptRow, ...]
    events: tuple[EventRow, ...]

    def reaching(self, answer: Answer) -> tuple[Rollout, ...]:
        """The rollouts that reach an answer."""
        return tuple(r for r in self.rollouts if r.rollout_id in answer.rollout_ids)

    @property
    def winning_path(self) -> tuple[int, ...]:
        """Root to leaf of the rollout whose text the best answer is; empty: none, or archived."""
        best = self.best_rollouts[:1]
        return next((r.path for r in self.rollouts if (r.rollout_id,) == best), ())

    @property
    def config(self) -> dict[str, Any]:
        """The search's settings; empty: it was never started."""
        return next((a.config for a in reversed(self.attempts) if a.config), {})

    @property
    def shortfall(self) -> str | None:
        """What became of the rollouts that did not end well; see JobResult."""
        action = {n.node_id: n.action for n in self.nodes}
        found = Shortfalls.of(self.rollouts, lambda i: action.get(i, Action.ANSWER))
        return explained(found, len(self.rollouts), self.config.get("max_new_tokens"))

    @property
    def archived(self) -> str | None:
        """The month whose archive has the tree and the answers, if they were archived."""
        return next((e.detail["month"] for e in self.events if e.event == "archived"), None)

    @property
    def redacted(self) -> EventRow | None:
        """When and by whom its texts were replaced, if they were."""
        return next((e for e in self.events if e.event == redaction.EVENT), None)

    @property
    def vote(self) -> tuple[Any, ...]:
        """How the answers are ranked: what `render.layout.weighting` says in words."""
        get = self.config.get
        return get("choice"), get("sharpness"), get("reward"), get("spread"), get("reference")

    @property
    def unscored(self) -> tuple[Rollout, ...]:
        """The rollouts whose answer the reward model or the verifier failed to score."""
        return tuple(r for r in self.rollouts if r.answer is not None and r.error is not None)


def read(conn: Conn, job_id: UUID) -> JobRecord:
    """The record of a job. Raises JobNotFound."""
    job = select(conn, JobStatus, "audit.jobs WHERE job_id = %s", [job_id])
    if not job:
        raise not_found(job_id)
    ((payload, best),) = conn.execute(
        "SELECT payload, ARRAY(SELECT best_rollout FROM audit.answers AS a"
        " WHERE a.job_id = j.job_id ORDER BY rank) FROM audit.jobs AS j WHERE job_id = %s",
        [job_id],
    )

    def rows(model: type[M], view: str, order: str) -> tuple[M, ...]:
        return tuple(select(conn, model, f"{view} WHERE job_id = %s ORDER BY {order}", [job_id]))

    record = JobRecord(
        job=job[0],
        payload=payload,
        answers=tuple(answers(conn, [str(job_id)])[str(job_id)]),
        best_rollouts=tuple(best),
        nodes=tuple(tree(conn, job_id)),
        rollouts=tuple(trail.rollouts(conn, job_id, schema=views.SCHEMA)),
        attempts=rows(AttemptRow, "audit.attempts", "generation"),
        events=rows(EventRow, "audit.events", "event_id"),
    )
    # Of an archived tree only the root is left: the view makes it from the job.
    return replace(record, nodes=()) if record.archived else record


_TREE = """(
    SELECT t.*, f.fork FROM audit.tree AS t LEFT JOIN (
        SELECT node_id, jsonb_build_object(
            'taken', taken, 'taken_share', taken_share,
            'passed_over', passed_over, 'passed_over_share', passed_over_share) AS fork
        FROM audit.forks WHERE job_id = %(job)s
    ) AS f ON f.node_id = t.node_id WHERE t.job_id = %(job)s
) AS tree ORDER BY node_id"""


def tree(conn: Conn, job_id: UUID) -> list[TreeRow]:
    """The nodes of a job's tree in id order, root first; none before its first round."""
    # Before Postgres has counted the rows of a search that just ran, it expects a handful, and
    # would sum all rollouts again for each node: seconds for a large tree.
    conn.execute("SET LOCAL enable_nestloop = off")
    rows = select(conn, TreeRow, _TREE, {"job": job_id})
    conn.execute("SET LOCAL enable_nestloop TO DEFAULT")
    return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTokens:
    """The generated tokens of one node: lists of the same length, five candidates each."""

    node_id: int
    token_ids: list[int]
    token_texts: list[str]
    logprobs: list[float]  #: natural logs
    confidences: list[float]  #: c_i
    top_ids: list[int]  #: of each token in turn; -1: fewer
    top_logprobs: list[float]
    top_texts: list[str | None]  #: what they read by themselves; None: unknown


_TOKENS = """(
    SELECT n.*, ARRAY(
        SELECT v.text FROM unnest(n.top_ids) WITH ORDINALITY AS c (token_id, place)
        LEFT JOIN audit.vocabulary AS v
            ON v.model = j.model AND v.revision = j.revision AND v.token_id = c.token_id
        ORDER BY place) AS top_texts
    FROM audit.nodes AS n JOIN audit.jobs AS j USING (job_id)
    WHERE job_id = %(job)s AND (%(node)s::int IS NULL OR node_id = %(node)s)
        AND cardinality(token_ids) > 0
) AS tokens ORDER BY node_id"""


def tokens(conn: Conn, job_id: UUID, node_id: int | None = None) -> dict[int, NodeTokens]:
    """The tokens of one node, or of all (None), by node id. The root has none."""
    found = select(conn, NodeTokens, _TOKENS, {"job": job_id, "node": node_id})
    return {row.node_id: row for row in found}


_SEARCH = """
SELECT j.state, j.redacted_at, j.payload, j.stop_reason, j.nodes, a.attempts, a.engines,
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
    texts: dict[int, str]


def stored_search(conn: Conn, job_id: UUID) -> StoredSearch:
    """The search of a job. Raises JobNotFound, and InvalidJob if no tree of it is stored."""
    with conn.cursor(row_factory=dict_row) as cursor:
        row: dict[str, Any] | None = cursor.execute(_SEARCH, [job_id]).fetchone()
    if row is None:
        raise not_found(job_id)
    nodes, rollouts = trail.load(conn, job_id, schema=views.SCHEMA)
    plan, grown = row.pop("plan"), row.pop("nodes")
    if (redacted := row.pop("redacted_at")) is not None:
        raise InvalidJob("job", f"redacted at {redacted:%Y-%m-%d %H:%M}: its texts are gone")
    if plan is not None and not rollouts and grown:
        raise InvalidJob("job", "its tree is in an archive: there is nothing to compare with")
    if plan is None or not rollouts:
        raise InvalidJob("job", f"{row['state']}, and no round of it is kept: nothing to replay")
    model = plan["model"], plan["revision"]
    return StoredSearch(
        job_id=job_id,
        job=parse_job(row.pop("payload")),
        plan=SearchPlan.from_json(plan),
        texts=vocabulary.read(conn, *model, nodes, schema=views.SCHEMA),
        nodes=nodes,
        rollouts=rollouts,
        **row,
    )
