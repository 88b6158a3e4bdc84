"""Thousands of stored jobs in a minute or two, as if each had been searched.

A few dozen jobs really are searched, by the worker's own runner on prepared branches. The
rest are copies of theirs under new ids, row for row and through the same tables, keys and
triggers, and are sealed like any job that ends. What was built stays: an interrupted build
goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from multiprocessing import get_context
from random import Random
from uuid import UUID, uuid4

from psycopg.sql import SQL, Composed, Identifier

from marco_search import schema
from marco_search.jobs import SearchOptions
from marco_search.kinds import ReasoningJob
from marco_search.search.branches import (
    REFLECTION_PHRASE,
    Branch,
    Expansion,
    ReflectionPlacement,
    Segment,
    Token,
)
from marco_search.settings import Settings
from marco_search.store.db import Conn, Database, allow
from marco_search.store.queue import jobs
from marco_search.store.queue.leases import Worker
from marco_search.store.seal import seals
from ops.bench.engine.core import Instant
from worker.runner import Runner

SEARCHED = 40
# Strategy -> rollouts that make some 100 nodes of 17 tokens. The second one reflects.
SEARCHES = (("step", 13), ("auto", 20))
TENANTS = ("acme", "brook", "cedar", "delta", "elm")
DAYS = 28
_AT_ONCE = 100
_SHARED = ("vocabulary", "chain", "proofs", "archives")
_COPIED = [table for table in schema.insert_only() if table not in _SHARED]


# As many texts as Marco-o1 has tokens; a search comes across some hundreds of them.
_WHOLE_VOCABULARY = """
    INSERT INTO vocabulary (model, revision, token_id, text)
    SELECT m.model, m.revision, i, 'token ' || i
    FROM (SELECT DISTINCT model, revision FROM attempts WHERE model IS NOT NULL) AS m
    CROSS JOIN generate_series(0, 151645) AS i ON CONFLICT DO NOTHING
"""

_known: dict[str, Token] = {}


def _known_tokens(segment: Segment) -> Segment:
    return replace(segment, tokens=tuple(_known.setdefault(t.text, t) for t in segment.tokens))


@dataclass
class Reflecting(Instant):
    """Prepared branches that begin with the phrase where the search wants them to."""

    clock: Callable[[], float] = time.perf_counter

    def branch(self, expansions: Sequence[Expansion]) -> list[Branch]:
        """At once. The same text has the same log-probs, wherever a branch was forked."""
        phrase = Segment(REFLECTION_PHRASE + "\n")
        branches = []
        asked = [request for expansion in expansions for request in expansion.branches]
        for request, branch in zip(asked, super().branch(expansions), strict=True):
            said = tuple(map(_known_tokens, branch.segments))
            reflects = request.reflect is ReflectionPlacement.FIRST
            branches.append(replace(branch, segments=(phrase, *said) if reflects else said))
        return branches


def build(url: str, count: int, processes: int) -> None:
    """Store jobs until there are `count` of them in the migrated database at `url`."""
    with closing(_database(url)) as database:
        with database.transaction() as conn:
            there = _ids(conn)
        _search(url, database, SEARCHED - len(there))
        with database.transaction() as conn:
            there = _ids(conn)
    missing = max(0, count - len(there))
    sizes = [min(_AT_ONCE, missing - start) for start in range(0, missing, _AT_ONCE)]
    sources = there[:SEARCHED]
    work = [url] * len(sizes), [sources] * len(sizes), sizes
    if processes == 1:
        list(map(_copies, *work))
    else:
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            list(pool.map(_copies, *work))
    with closing(_database(url)) as database, database.connect() as conn:
        allow(conn, None)
        conn.execute(_WHOLE_VOCABULARY)
        conn.execute("VACUUM ANALYZE")


def _database(url: str) -> Database:
    return Database(url, application="marco bench", connections=2)


def _ids(conn: Conn) -> list[UUID]:
    rows = conn.execute("SELECT id FROM jobs WHERE finished_at IS NOT NULL ORDER BY id")
    return [row[0] for row in rows]


def _search(url: str, database: Database, count: int) -> None:
    settings = Settings.model_validate({"DATABASE_URL": url})
    runner = Runner(settings, database, Reflecting, Worker(name="bench", host="bench", pid=1))
    for seed in range(count):
        strategy, rollouts = SEARCHES[seed % len(SEARCHES)]
        options = SearchOptions.model_validate(
            {"strategy": strategy, "rollouts": rollouts, "seed": seed, "early_stop": False}
            | {"reflection": "branch"}
        )
        job = ReasoningJob(question=f"What is question {seed}?", expected="1", options=options)
        with database.transaction() as conn:
            (stored,) = jobs.insert(conn, [job], tenant=TENANTS[0], batch_id=uuid4())
        runner.run(stored.id)


def _copies(url: str, sources: Sequence[UUID], count: int) -> None:
    """Copies of as many jobs, with new ids, other tenants and times, all sealed; one batch."""
    ids = [jobs.new_job_id() for _ in range(count)]
    random = Random(ids[0].int)
    with closing(_database(url)) as database, database.transaction() as conn:
        conn.execute("SET LOCAL synchronous_commit = off")
        conn.execute("CREATE TEMP TABLE made (id uuid, source uuid, age interval) ON COMMIT DROP")
        with conn.cursor().copy("COPY made FROM STDIN") as copy:
            for job_id in ids:
                age = f"{random.randrange(DAYS * 86_400)} seconds"
                copy.write_row((job_id, random.choice(sources), age))
        conn.execute(_jobs_copied(), {"tenant": random.choice(TENANTS), "batch": uuid4()})
        for table in _COPIED:
            conn.execute(_rows_copied(table))
        seals.seal(conn, ids)


def _jobs_copied() -> Composed:
    times = ("created_at", "run_after", "published_at", "started_at", "finished_at")
    other = {"id": "made.id", "tenant": "%(tenant)s", "batch_id": "%(batch)s"}
    other |= {name: f"job.{name} - made.age" for name in times}
    other["idempotency_key"] = "NULL"
    return _copied("jobs", other, "job.id", "made.id")


def _rows_copied(table: str) -> Composed:
    # In the order in which they were written: audit_log numbers its rows as they come.
    order = ["made.id", *(f"job.{c.name}" for c in schema.metadata.tables[table].primary_key)]
    return _copied(table, {"job_id": "made.id"}, "job.job_id", ", ".join(order))


def _copied(table: str, other: dict[str, str], source: str, order: str) -> Composed:
    columns = [c for c in schema.metadata.tables[table].columns if c.identity is None]
    values = [other.get(column.name, f'job."{column.name}"') for column in columns]
    return SQL(
        "INSERT INTO {table} ({names}) SELECT {values} FROM made"
        " JOIN {table} AS job ON {source} = made.source ORDER BY {order}"
    ).format(
        table=Identifier(table),
        names=SQL(", ").join(Identifier(column.name) for column in columns),
        values=SQL(", ").join(map(_sql, values)),
        source=_sql(source),
        order=_sql(order),
    )


def _sql(text: str) -> SQL:
    """`text` as SQL: made of the names in the models alone."""
    return SQL(text)
