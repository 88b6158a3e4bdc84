"""Reads of jobs: lists, status, totals and results.

Reads the views of the schema `audit` only, so that an auditor's login is enough.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from psycopg.rows import dict_row
from pydantic import BaseModel, BeforeValidator, ConfigDict

from marco_search.errors import AmbiguousJob, InvalidJob, JobNotFound
from marco_search.jobs import Answer, JobResult
from marco_search.jobs.validation import shown
from marco_search.search.config import SearchConfig
from marco_search.store.db import Conn, select
from marco_search.store.queue.batches import Batch, latest
from marco_search.store.queue.jobs import OF_BATCH
from marco_search.store.queue.states import JobState, not_found

LOW_QUANTILE = 0.1
"""A confidence is low if it is in this lowest share of its model's."""
NARROW_SHARE = 0.6
"""An answer won narrowly if its share of the vote is less than this."""


class JobStatus(BaseModel):
    """A job's status: a row of the view audit.jobs. Times are UTC; None: not yet, or not given.

    Fields:
    job_id, tenant, kind: Which job, whose, and of what kind
    batch_id, batch_line: The batch it was submitted in, and its line there, from 1
    custom_id, idempotency_key, metadata: As the caller gave them
    state: See JobState; `shown_state` also says "paused"
    subject: The question, text or prompt; empty if the views do not know a new kind's field yet
    strategy, seed: How it is searched
    priority: 0 is high, 3 normal, 6 low
    created_at, started_at, finished_at: When it was submitted, first claimed, and ended
    run_after: Not claimed before this time (back-off after an error)
    expires_at: Its deadline
    cancel_requested_at, paused_at: When it was asked to stop; when it or its tenant was paused
    attempts, lease_owner: How often workers have claimed it; the worker that holds it
    rounds, rollouts, nodes, generated_tokens: What its search has stored so far
    rollout_budget: Maximum rollouts; None before it is started
    seconds: Time of searching, over all attempts
    answer, confidence, share: The best answer, its confidence, and its share of the vote, 0 to 1
    confidence_quantile: Share of its model's latest jobs with a lower confidence, 0 to 1
    expected, correct: The expected answer, and whether the best answer equals it
    stop_reason: Why the search ended
    model, revision: The model it is searched with
    error_type, error: Class and message of its last error
    redacted_at: When its texts were redacted
    """

    model_config = ConfigDict(frozen=True)

    job_id: UUID
    tenant: str
    batch_id: UUID | None
    batch_line: int | None = None
    custom_id: str | None = None
    idempotency_key: str | None = None
    kind: str
    state: JobState
    subject: Annotated[str, BeforeValidator(lambda text: text or "")]
    metadata: dict[str, Any] | None = None
    strategy: str
    priority: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    run_after: datetime
    cancel_requested_at: datetime | None
    expires_at: datetime | None = None
    paused_at: datetime | None = None
    attempts: int
    lease_owner: str | None
    rounds: int
    rollouts: int
    rollout_budget: int | None
    nodes: int
    generated_tokens: int
    seconds: float
    answer: str | None
    confidence: float | None
    share: float | None = None
    confidence_quantile: float | None = None
    expected: str | None
    correct: bool | None
    stop_reason: str | None
    model: str | None
    revision: str | None = None
    seed: int | None = None
    error_type: str | None
    error: str | None
    redacted_at: datetime | None = None

    @property
    def final(self) -> bool:
        """True once the job has ended."""
        return self.finished_at is not None

    @property
    def shown_state(self) -> str:
        """The state, or "paused" for a queued job that is paused."""
        waits = self.state is JobState.QUEUED and self.paused_at is not None
        return "paused" if waits else str(self.state)


_IN = "(%(tenant)s::text IS NULL OR tenant = %(tenant)s)"
_WANTED = f"job_id = ANY (%(ids)s) AND {_IN}"


def statuses(conn: Conn, job_ids: Iterable[UUID], *, tenant: str | None = None) -> list[JobStatus]:
    """The status of each job, in the order asked. Raises JobNotFound for the first unknown."""
    wanted = list(job_ids)
    rows = select(conn, JobStatus, f"audit.jobs WHERE {_WANTED}", {"ids": wanted, "tenant": tenant})
    found = {row.job_id: row for row in rows}
    for job_id in wanted:
        if job_id not in found:
            raise not_found(job_id, tenant)
    return [found[job_id] for job_id in wanted]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which jobs are listed. None: any. Ids sort by time of submission."""

    state: str | None = None
    kind: str | None = None
    tenant: str | None = None
    batch: UUID | None = None
    #: in the subject, metadata, idempotency key or custom id, in any case, or in the id
    text: str | None = None
    doubt: Literal["low", "narrow"] | None = None  #: see LOW_QUANTILE, NARROW_SHARE
    order: str = "newest"  #: a name in ORDERS
    before: UUID | None = None  #: further down the list than this job
    after: UUID | None = None  #: further up than this job


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPage:
    """Jobs in the order asked for, and whether there are more above and below them."""

    jobs: tuple[JobStatus, ...]
    newer: bool
    older: bool
    counts: dict[str, int] = field(default_factory=dict)  #: of all states that fit otherwise


ORDERS = {
    "newest": "job_id",
    "oldest": "-extract(epoch FROM created_at), job_id",
    "ended last": "coalesce(finished_at, '-infinity'), job_id",
    "least confident": "-coalesce(confidence, 2), job_id",
    "longest": "seconds, job_id",
    "most tokens": "generated_tokens, job_id",
}
"""Orders of the list: the highest of these first. Ids sort by time of submission."""
COUNTED = 100_000
"""Jobs that are counted by state; more would make a list of millions slow."""


_FILTERED = f"""audit.jobs
    WHERE (%(state)s::text IS NULL OR state = %(state)s)
    AND (%(kind)s::text IS NULL OR kind = %(kind)s)
    AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s)
    AND (%(batch)s::uuid IS NULL OR job_id = {OF_BATCH})
    AND (%(text)s::text IS NULL OR subject ILIKE %(text)s OR idempotency_key ILIKE %(text)s
        OR custom_id ILIKE %(text)s
        OR metadata::text ILIKE %(text)s OR replace(job_id::text, '-', '') LIKE %(part)s)
    AND (%(low)s::float8 IS NULL OR confidence_quantile < %(low)s)
    AND (%(narrow)s::float8 IS NULL OR share < %(narrow)s)
"""  # constants


def page(conn: Conn, wanted: JobFilter, *, limit: int = 50) -> JobPage:
    """The first `limit` jobs that fit, or those next to `wanted.before` or `wanted.after`."""
    given = _given(wanted) | {"limit": limit + 1}
    forward = wanted.after is not None
    keys, way = ORDERS[wanted.order], "ASC" if forward else "DESC"
    sql = _FILTERED
    for name, sign in (("after", ">"), ("before", "<")):
        if getattr(wanted, name) is not None:
            sql += f"AND ({keys}) {sign} {_place(keys, name)} "
    order = f"{keys.replace(', job_id', f' {way}, job_id')} {way}"
    # Which, before all of their columns: else Postgres has those made for every job that matches.
    ids = f"SELECT job_id FROM {sql} ORDER BY {order} LIMIT %(limit)s"  # noqa: S608  # constants
    source = f"audit.jobs WHERE job_id = ANY (ARRAY({ids})) ORDER BY {order}"
    found = select(conn, JobStatus, source, given)
    more, jobs = len(found) > limit, found[:limit]
    if forward:
        return JobPage(jobs=tuple(jobs[::-1]), newer=more, older=True)
    return JobPage(jobs=tuple(jobs), newer=wanted.before is not None, older=more)


def counts(conn: Conn, wanted: JobFilter) -> dict[str, int]:
    """Number of matching jobs by state, whatever `wanted.state`; counts COUNTED jobs at most."""
    given = _given(wanted) | {"state": None, "limit": COUNTED}
    query = f"""SELECT state, count(*) FROM (SELECT state FROM {_FILTERED} LIMIT %(limit)s) AS fit
        GROUP BY state ORDER BY state"""  # noqa: S608  # constants
    return dict(conn.execute(query.encode(), given).fetchall())


def _given(wanted: JobFilter) -> dict[str, Any]:
    """The parameters of _FILTERED."""
    text = wanted.text
    return asdict(wanted) | {
        "text": None if text is None else f"%{_literal(text)}%",
        "part": None if text is None else f"%{_literal(text.replace('-', '').lower())}%",
        "low": LOW_QUANTILE if wanted.doubt == "low" else None,
        "narrow": NARROW_SHARE if wanted.doubt == "narrow" else None,
    }


def _place(keys: str, name: str) -> str:
    """The position of the job of this parameter in an order."""
    if keys == ORDERS["newest"]:  # so that the primary key is used
        return f"%({name})s::uuid"
    return f"(SELECT {keys} FROM audit.jobs WHERE job_id = %({name})s)"  # noqa: S608  # constants


def _literal(text: str) -> str:
    """`text` in a LIKE pattern, where it stands for itself."""
    return re.sub(r"([\\%_])", r"\\\1", text)


@dataclass(slots=True, kw_only=True)
class Totals:
    """Sums over the jobs of one batch or tenant, whose id or name is `name`."""

    name: str
    states: dict[str, int] = field(default_factory=dict)  #: jobs in each state
    jobs: int = 0
    right: int = 0  #: of those compared
    compared: int = 0  #: ended, with an expected answer
    rollouts: int = 0
    nodes: int = 0
    generated_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    seconds: float = 0.0
    model: str | None = None  #: that they were searched with, if it is one
    confidence: float | None = None  #: mean of the best answers'
    first: datetime | None = None  #: submission
    last: datetime | None = None


_TOTALS = """(
    SELECT {key}::text AS name, json_object_agg(state, jobs ORDER BY state) AS states,
        sum(jobs)::bigint AS jobs, sum("right")::bigint AS "right",
        sum(compared)::bigint AS compared, sum(rollouts)::bigint AS rollouts,
        sum(nodes)::bigint AS nodes, sum(generated_tokens)::bigint AS generated_tokens,
        sum(prompt_tokens)::bigint AS prompt_tokens, sum(cached_tokens)::bigint AS cached_tokens,
        CASE WHEN min(one) = max(other) THEN min(one) END AS model,
        sum(seconds) AS seconds, sum(confidence) / nullif(sum(scored), 0) AS confidence,
        min(first) AS first, max(last) AS last
    FROM (
        SELECT {key}, state, count(*) AS jobs, count(*) FILTER (WHERE correct) AS "right",
            count(correct) AS compared, sum(rollouts) AS rollouts, sum(nodes) AS nodes,
            sum(generated_tokens) AS generated_tokens, sum(seconds) AS seconds,
            sum(prompt_tokens) AS prompt_tokens, sum(cached_tokens) AS cached_tokens,
            min(model) AS one, max(model) AS other,
            sum(confidence) AS confidence, count(confidence) AS scored,
            min(created_at) AS first, max(created_at) AS last
        FROM {jobs} GROUP BY {key}, state
    ) AS by_state GROUP BY 1
) AS totals"""
_TENANTS = _TOTALS.format(key="tenant", jobs="audit.jobs")
_BATCHES = _TOTALS.format(
    key="batch",
    jobs="""(
        SELECT l.batch_id AS batch, j.* FROM unnest(%(batches)s::uuid[]) AS given (batch_id)
        CROSS JOIN LATERAL (
            SELECT batch_id, job_id FROM audit.batch_lines WHERE batch_id = given.batch_id
        ) AS l JOIN audit.jobs AS j ON j.job_id = l.job_id
    ) AS jobs""",
)


def tenants(conn: Conn) -> list[Totals]:
    """Totals of every tenant, by name."""
    return select(conn, Totals, f"{_TENANTS} ORDER BY name")


def batches(conn: Conn, *, limit: int = 200) -> list[tuple[Batch, Totals]]:
    """The latest batches with their totals, newest first."""
    found = latest(conn, limit=limit)
    named = {one.name: one for one in batch_totals(conn, [batch.id for batch in found])}
    return [(batch, named.get(str(batch.id), Totals(name=str(batch.id)))) for batch in found]


def batch_totals(conn: Conn, batch_ids: Sequence[UUID]) -> list[Totals]:
    """Totals of those of the batches that have jobs, in any order."""
    return select(conn, Totals, _BATCHES, {"batches": list(batch_ids)})


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerProcess:
    """A process that claimed jobs lately, its model and engine, and its current job."""

    worker: str
    host: str
    pid: int
    first_claim: datetime  #: of those looked at
    last_claim: datetime
    claims: int
    model: str | None
    revision: str | None
    runtime: str | None
    runtime_version: str | None
    job_id: UUID | None  #: None: it has no job
    tenant: str | None  #: of that job, and so on
    subject: str | None
    rollouts: int | None
    rollout_budget: int | None


# Claims of the latest jobs, and those of jobs that run however old they are.
_WORKERS = """(
    SELECT latest.*, j.job_id, j.tenant, j.subject, j.rollouts, j.rollout_budget
    FROM (
        SELECT worker, host, pid, min(started_at) AS first_claim, max(started_at) AS last_claim,
            count(*) AS claims,
            (array_agg(model ORDER BY started_at DESC))[1] AS model,
            (array_agg(revision ORDER BY started_at DESC))[1] AS revision,
            (array_agg(runtime ORDER BY started_at DESC))[1] AS runtime,
            (array_agg(runtime_version ORDER BY started_at DESC))[1] AS runtime_version
        FROM (
            (SELECT {columns} FROM audit.attempts ORDER BY job_id DESC LIMIT 1000)
            UNION
            SELECT {columns} FROM audit.attempts
            WHERE job_id IN (SELECT job_id FROM audit.jobs WHERE state = 'running')
        ) AS claims GROUP BY worker, host, pid
    ) AS latest
    LEFT JOIN audit.jobs AS j ON j.state = 'running' AND j.lease_owner = latest.worker
    ORDER BY j.job_id IS NULL, last_claim DESC LIMIT %(limit)s
) AS workers""".format(  # noqa: S608  # constants
    columns="job_id, generation, worker, host, pid, started_at, model, revision, runtime,"
    " runtime_version"
)


def workers(conn: Conn, *, limit: int = 100) -> list[WorkerProcess]:
    """The processes that claimed jobs lately, those at work first, then by their last claim."""
    return select(conn, WorkerProcess, _WORKERS, {"limit": limit})


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingModel:
    """A model that no worker had lately, and the number of started jobs that wait for it."""

    model: str
    revision: str
    jobs: int

    def __str__(self) -> str:
        wait = "1 job waits" if self.jobs == 1 else f"{self.jobs:,} jobs wait"
        return f"{wait} for a worker with model {self.model} (revision {self.revision[:12]})"


_MISSING_MODELS = """(
    SELECT model, revision, count(*) AS jobs FROM audit.jobs
    WHERE state = 'queued' AND parked_at IS NOT NULL
        AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s)
    GROUP BY model, revision
) AS missing ORDER BY model, revision"""


def missing_models(conn: Conn, *, tenant: str | None = None) -> list[MissingModel]:
    """The models that started jobs wait for; optionally only of a tenant's jobs."""
    return select(conn, MissingModel, _MISSING_MODELS, {"tenant": tenant})


def config(conn: Conn, job_id: UUID) -> SearchConfig:
    """How a job is searched. Raises InvalidJob if it was never started."""
    query = "SELECT config FROM audit.jobs WHERE job_id = %s AND config IS NOT NULL"
    found = conn.execute(query, [job_id]).fetchone()
    if found is None:
        raise InvalidJob("job", f"{job_id} was never started: it has no configuration")
    return SearchConfig.from_json(found[0])


_ZERO = "ARRAY[0::float8]"
_RESULTS = f"""
    SELECT job_id::text, tenant, batch_id::text, batch_line, custom_id, idempotency_key, metadata,
        payload ->> 'endpoint' AS endpoint, subject, kind, state,
        coalesce(config ->> 'strategy', strategy) AS strategy,
        stop_reason, redacted_at, rollouts, nodes, generated_tokens,
        prompt_tokens, cached_tokens, seconds, model, revision, expected, correct,
        confidence_quantile, config ->> 'choice' AS vote,
        (config ->> 'sharpness')::float8 AS sharpness,
        (config ->> 'spread')::float8 AS spread, (config ->> 'reference')::float8 AS reference,
        CASE WHEN config IS NOT NULL THEN coalesce(config ->> 'reward', 'confidence') END AS reward,
        config ->> 'verifier' AS verifier,
        (config ->> 'max_new_tokens')::int AS max_new_tokens,
        nullif(config ->> 'profile', '') AS profile,
        (SELECT jsonb_build_object(
            'failed', count(*) FILTER (WHERE r.finish = 'failed'),
            'cut_off', count(*) FILTER (WHERE r.finish = 'length'),
            'cut_off_at', coalesce(max(r.generated_tokens) FILTER (WHERE r.finish = 'length'), 0),
            'unscored', count(*) FILTER (WHERE r.answer IS NOT NULL AND r.error IS NOT NULL),
            'rejected', count(*) FILTER (WHERE r.answer IS NOT NULL AND r.scores = {_ZERO}),
            'untagged', count(*) FILTER (
                WHERE r.finish = 'stop' AND leaf.action IS DISTINCT FROM 'answer'
                AND (r.answer IS NULL OR r.error IS NULL AND r.scores IS DISTINCT FROM {_ZERO})),
            'unanswered', count(*) FILTER (
                WHERE r.finish = 'stop' AND leaf.action = 'answer' AND r.answer IS NULL))
         FROM audit.rollouts AS r LEFT JOIN audit.nodes AS leaf  -- the root is not stored
             ON leaf.job_id = r.job_id AND leaf.node_id = r.path[cardinality(r.path)]
         WHERE r.job_id = jobs.job_id) AS shortfalls,
        CASE WHEN rollouts > 0
            AND NOT EXISTS (SELECT FROM audit.rollouts AS r WHERE r.job_id = jobs.job_id)
        THEN (SELECT e.detail ->> 'month' FROM audit.events AS e
            WHERE e.job_id = jobs.job_id AND e.event = 'archived') END AS archived,
        -- A job that succeeded may have the error of an earlier attempt.
        CASE WHEN state <> 'succeeded' THEN error_type END AS error_type,
        CASE WHEN state <> 'succeeded' THEN error END AS error
    FROM audit.jobs WHERE {_WANTED} AND finished_at IS NOT NULL
"""  # noqa: S608  # constants
_ANSWERS = """
    SELECT job_id::text, rank, key AS normalised, text, output, thought, confidence, votes, share,
        rollout_ids
    FROM audit.answers WHERE job_id = ANY (%s::uuid[]) ORDER BY rank
"""


def results(conn: Conn, job_ids: Iterable[UUID], *, tenant: str | None = None) -> list[JobResult]:
    """The results of the jobs that have ended, in any order."""
    with conn.cursor(row_factory=dict_row) as cursor:
        wanted = {"ids": list(job_ids), "tenant": tenant}
        rows = cursor.execute(_RESULTS, wanted).fetchall()
    ranked = answers(conn, [row["job_id"] for row in rows])
    return [JobResult(answers=tuple(ranked[row["job_id"]]), **row) for row in rows]


def answers(conn: Conn, job_ids: Sequence[str]) -> dict[str, list[Answer]]:
    """The answers of each job, the best first."""
    found: dict[str, list[Answer]] = {job_id: [] for job_id in job_ids}
    with conn.cursor(row_factory=dict_row) as cursor:
        for row in cursor.execute(_ANSWERS, [list(job_ids)]):
            found[row.pop("job_id")].append(Answer(**row))
    return found


_SHORTEST, _WHOLE = 4, 32  # hexadecimal digits of an id
# Two are enough to see that there are several. In order: else the primary key may go unused.
BEGINNINGS = """
SELECT given.part, found.job_id
FROM unnest(%(parts)s::text[], %(first)s::uuid[], %(last)s::uuid[]) AS given (part, first, last),
LATERAL (
    SELECT job_id FROM audit.jobs
    WHERE job_id BETWEEN given.first AND given.last
        AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s)
    ORDER BY job_id LIMIT 2
) AS found
"""
# Looked up in a hash of them: a join would go through all of them for each job.
_ENDS = """
SELECT right(replace(job_id::text, '-', ''), %(length)s), job_id FROM audit.jobs
WHERE (%(tenant)s::text IS NULL OR tenant = %(tenant)s)
    AND right(replace(job_id::text, '-', ''), %(length)s) = ANY (%(parts)s::text[])
"""


def matching(conn: Conn, word: str) -> list[UUID]:
    """The jobs of any tenant whose id begins or ends with `word`, at least two if several do.

    Raises JobNotFound if there are none, and InvalidJob for what can't be part of an id.
    """
    found = sorted(_matching(conn, [_hexadecimal(word)], None)[0])
    if not found:
        raise JobNotFound(f"no job {word}; see `marco status --all-tenants`")
    return found


def find_jobs(conn: Conn, words: Sequence[str], tenant: str | None) -> list[UUID]:
    """The tenant's jobs that these words name: ids, or the beginning or end of an id.

    Ids begin with the time of submission, so jobs of one batch differ at the end first. Raises
    JobNotFound, AmbiguousJob, or InvalidJob for what can't be part of an id.
    """
    found = _matching(conn, [_hexadecimal(word) for word in words], tenant)
    return [_only(conn, word, ids, tenant) for word, ids in zip(words, found, strict=True)]


def _matching(conn: Conn, parts: Sequence[str], tenant: str | None) -> list[set[UUID]]:
    """The jobs whose id begins or ends with each part.

    However many there are, ids and their beginnings take one statement on the primary key; ends
    of one length take one pass over the jobs.
    """
    distinct = list(set(parts))
    found: defaultdict[str, set[UUID]] = defaultdict(set)
    ranges = {
        "parts": distinct,
        "first": [part.ljust(_WHOLE, "0") for part in distinct],
        "last": [part.ljust(_WHOLE, "f") for part in distinct],
    }
    for part, job_id in conn.execute(BEGINNINGS, {"tenant": tenant, **ranges}):
        found[part].add(job_id)
    for length in {len(part) for part in distinct if len(part) < _WHOLE}:
        ends = [part for part in distinct if len(part) == length]
        given = {"tenant": tenant, "parts": ends, "length": length}
        for part, job_id in conn.execute(_ENDS, given):
            found[part].add(job_id)
    return [found[part] for part in parts]


def _only(conn: Conn, word: str, found: set[UUID], tenant: str | None) -> UUID:
    if len(found) > 1:
        raise AmbiguousJob(f"{word} matches several jobs: give more of the id")
    if found:
        return next(iter(found))
    job = statuses(conn, matching(conn, word))[0]  # raises if no tenant has it
    raise JobNotFound(f"job {word} is of tenant {job.tenant!r}, not {tenant!r}: give --tenant")


def _hexadecimal(word: str) -> str:
    """The digits of an id or of a part of one."""
    part = word.strip().lower()
    if not re.fullmatch(r"[0-9a-f-]+", part):
        raise InvalidJob("job", f"invalid job id {shown(word)}: ids have digits, a to f, dashes")
    part = part.replace("-", "")
    if len(part) < _SHORTEST:
        raise InvalidJob("job", f"{word!r} is too short: give at least {_SHORTEST} characters")
    if len(part) > _WHOLE:
        raise InvalidJob("job", f"invalid job id {shown(word)}: longer than an id")
    return part


_ENDED = "(%(finished)s::boolean IS NULL OR (finished_at IS NOT NULL) = %(finished)s)"


def jobs_of(conn: Conn, tenant: str | None, *, finished: bool) -> list[UUID]:
    """The tenant's jobs that have ended, or those that have not, oldest first."""
    query = f"SELECT job_id FROM audit.jobs WHERE {_IN} AND {_ENDED} ORDER BY created_at, job_id"  # noqa: S608
    return [row[0] for row in conn.execute(query, {"tenant": tenant, "finished": finished})]


def jobs_of_batch(conn: Conn, batch_id: UUID, tenant: str | None) -> list[UUID]:
    """The tenant's jobs in a batch, in the order of its lines; of each line the latest.

    Raises JobNotFound if there are none.
    """
    query = f"""SELECT job_id FROM audit.batch_lines
        WHERE batch_id = %(batch)s AND job_id IS NOT NULL AND {_IN} ORDER BY line"""  # noqa: S608
    found = [row[0] for row in conn.execute(query, {"batch": batch_id, "tenant": tenant})]
    if not found:
        raise JobNotFound(f"no job of batch {batch_id}; `marco batch status` lists the latest")
    return found


def other_tenants(
    conn: Conn, tenant: str | None, *, finished: bool | None = None
) -> dict[str, int]:
    """How many jobs each other tenant has, only ended or unended ones if given; None has none."""
    query = f"""
        SELECT tenant, count(*) FROM audit.jobs WHERE tenant <> %(tenant)s AND {_ENDED}
        GROUP BY tenant ORDER BY tenant
    """  # noqa: S608
    return dict(conn.execute(query, {"tenant": tenant, "finished": finished}).fetchall())


def state_counts(conn: Conn, tenant: str | None, batch: UUID | None = None) -> dict[str, int]:
    """How many of the tenant's jobs, or of its batch, are in each state, "paused" among them."""
    query = f"""
        SELECT CASE WHEN state = 'queued' AND paused_at IS NOT NULL THEN 'paused' ELSE state END,
            count(*)
        FROM audit.jobs WHERE {_IN} AND (%(batch)s::uuid IS NULL OR job_id = {OF_BATCH})
        GROUP BY 1 ORDER BY 1
    """  # noqa: S608
    return dict(conn.execute(query, {"tenant": tenant, "batch": batch}).fetchall())


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """Number of unfinished jobs by what they wait for."""

    worker: int  #: running, or any worker may begin them
    pause: int  #: their own, their tenant's or everyone's ends
    model: int  #: a worker that has the model they were begun on


_UNFINISHED = f"""(
    SELECT count(*) FILTER (WHERE NOT paused AND parked_at IS NULL) AS worker,
        count(*) FILTER (WHERE paused) AS pause,
        count(*) FILTER (WHERE NOT paused AND parked_at IS NOT NULL) AS model
    FROM (SELECT state = 'queued' AND paused_at IS NOT NULL AS paused, parked_at FROM audit.jobs
        WHERE finished_at IS NULL AND {_IN}
        AND (%(batch)s::uuid IS NULL OR job_id = {OF_BATCH})
        AND (%(ids)s::uuid[] IS NULL OR job_id = ANY (%(ids)s))) AS unfinished
) AS counted"""  # noqa: S608


def unfinished(
    conn: Conn,
    tenant: str | None,
    job_ids: Iterable[UUID] | None = None,
    batch: UUID | None = None,
) -> Unfinished:
    """What the tenant's jobs, optionally only the given ones or those of a batch, wait for."""
    ids = None if job_ids is None else list(job_ids)
    given = {"tenant": tenant, "ids": ids, "batch": batch}
    return select(conn, Unfinished, _UNFINISHED, given)[0]
