"""How fast an auditor's questions are answered among 10,000 stored jobs: `make bench-store`.

A few dozen jobs are searched by the worker on prepared branches. The rest are copies of theirs
under new ids, through the same tables, keys and triggers, sealed like any job that ends. Every
query of docs/sql.md about one job is asked of many jobs, as the owner and as an auditor of one
tenant; those about the whole database a few times.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from multiprocessing import get_context
from random import Random
from statistics import median
from typing import Any
from uuid import UUID, uuid4

import psycopg
from psycopg.sql import SQL, Composed, Identifier

from marco_search import schema, settings
from marco_search.settings import Settings
from marco_search.store.db import Database, allow
from marco_search.store.queue import jobs
from marco_search.store.reads.reader_sql import run_query, with_values
from marco_search.store.seal import seals
from marco_search.store.seal.verification import verify_all
from ops.bench.harness import WORKER, percentile, report, scratch_services, seconds
from ops.bench.simulator import InstantRuntime, job
from ops.docs import Question, read
from worker.runner import Runner

SEARCHED, AT_ONCE = 40, 100
SAMPLES = 60  # jobs that each question about one job is asked of
RUNS = 3  # of a question about the whole database
PROCESSES = 2
# Strategy and rollouts: some 100 nodes of 17 tokens; one in 20 is a tree of 1,700 nodes, 200 deep.
SEARCHES = (*[("step", 13)] * 19, ("tree", 20))
TENANTS, DAYS = ("acme", "brook", "cedar", "delta", "elm"), 28
AUDITOR = "bench_auditor"
GOALS = {
    "slowest_query_p95_ms": "< 50",
    "slowest_auditor_query_p95_ms": "< 50",
    "verify_nodes_per_s": "> 16,667",
}
_TIMES = ("created_at", "run_after", "published_at", "started_at", "finished_at")
_OTHER = {
    "id": "made.id",
    "tenant": "%(tenant)s",
    "batch_id": "%(batch)s",
    "batch_line": "row_number() OVER ()",
    "idempotency_key": "NULL",
    **{name: f"job.{name} - made.age" for name in _TIMES},
}
"""What a copied job has instead of its source's values."""
_SHARED = ("vocabulary", "chain", "proofs", "archives", "datasets", "dataset_samples")
# As many texts as Marco-o1 has tokens; a search meets some hundreds of them.
_VOCABULARY = """
    INSERT INTO vocabulary (model, revision, token_id, text)
    SELECT m.model, m.revision, i, 'token ' || i
    FROM (SELECT DISTINCT model, revision FROM attempts WHERE model IS NOT NULL) AS m
    CROSS JOIN generate_series(0, 151645) AS i ON CONFLICT DO NOTHING
"""
_SIZE = """
    SELECT (SELECT count(*) FROM jobs), (SELECT count(*) FROM nodes),
        (SELECT sum(generated_tokens)::bigint FROM jobs),
        round(pg_database_size(current_database()) / 1e6)::int
"""

Conn = psycopg.Connection[Any]


def measure(count: int, *, keep: bool) -> dict[str, Any]:
    """All figures. Times are in the unit that ends the key."""
    home = settings.load().home.absolute() / "bench-store"
    with scratch_services(home, keep=keep) as services:
        url = services.urls.database_url
        found: dict[str, Any] = {"build_s": seconds(lambda: build(url, count, PROCESSES))}
        with psycopg.connect(url, autocommit=True) as conn:
            size = conn.execute(_SIZE.encode()).fetchone() or ()
            found |= dict(zip(("jobs", "nodes", "tokens", "database_mb"), size, strict=True))
            found |= answer_times(conn)
        verified = verify_all(url, processes=PROCESSES)
    return found | {
        "verify_s": verified.seconds,
        "verify_nodes_per_s": verified.nodes / verified.seconds,
        "verify_fits": verified.ok,
        "load_average": os.getloadavg()[0],
    }


def answer_times(conn: Conn) -> dict[str, Any]:
    """Of all questions; the slowest of those about one job, also as an auditor."""
    found: dict[str, Any] = {}
    questions = read()
    of_one_job = [question for question in questions if question.about_one_job]
    for question in of_one_job:
        times = _milliseconds(conn, _of_jobs(conn, question, "%"))
        found[f"q{question.number:02}_p50_ms"] = median(times)
        found[f"q{question.number:02}_p95_ms"] = percentile(times, 0.95)
    found["slowest_query_p95_ms"] = max(found[f"q{q.number:02}_p95_ms"] for q in of_one_job)
    theirs = [_of_jobs(conn, question, TENANTS[0]) for question in of_one_job]
    with _auditor(conn, TENANTS[0]):
        slowest = max(percentile(_milliseconds(conn, queries), 0.95) for queries in theirs)
    found["slowest_auditor_query_p95_ms"] = slowest
    for question in questions:
        if not question.about_one_job:
            times = _milliseconds(conn, [question.sql] * RUNS)
            found[f"q{question.number:02}_whole_database_s"] = median(times) / 1000
    return found


def _of_jobs(conn: Conn, question: Question, tenant: str) -> list[str]:
    """The question about some jobs of a tenant ("%": any)."""
    query = "SELECT job_id FROM audit.jobs WHERE tenant LIKE %s ORDER BY job_id"
    ids = Random(0).choices([str(row[0]) for row in conn.execute(query, [tenant])], k=SAMPLES)
    return [with_values(question.sql, {"job": job_id}) for job_id in ids]


def _milliseconds(conn: Conn, queries: Sequence[str]) -> list[float]:
    run = partial(run_query, conn, timeout_s=300)
    return [1000 * seconds(partial(run, query)) for query in queries]


@contextmanager
def _auditor(conn: Conn, tenant: str) -> Iterator[None]:
    """The session of an auditor who may see one tenant."""
    conn.execute(f"DROP ROLE IF EXISTS {AUDITOR}")
    conn.execute(f"CREATE ROLE {AUDITOR} IN ROLE marco_auditor")
    conn.execute("INSERT INTO auditors VALUES (%s, %s) ON CONFLICT DO NOTHING", [AUDITOR, tenant])
    conn.execute(f"SET SESSION AUTHORIZATION {AUDITOR}")
    try:
        yield
    finally:
        conn.execute("RESET SESSION AUTHORIZATION")


# -- The stored jobs --------------------------------------------------------------------


def build(
    url: str, count: int, processes: int, *, searched: int = SEARCHED, vocabulary: bool = True
) -> None:
    """Store jobs until `count` have ended in the migrated database; `searched` of them really."""
    with closing(_database(url)) as database:
        _search(url, database, searched - len(_ended(database)))
        there = _ended(database)
    missing = max(0, count - len(there))
    sizes = [min(AT_ONCE, missing - start) for start in range(0, missing, AT_ONCE)]
    copy = partial(_copy_jobs, url, there[:searched])
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        list(pool.map(copy, sizes))
    with closing(_database(url)) as database, database.connect() as conn:
        allow(conn, None)
        if vocabulary:
            conn.execute(_VOCABULARY)
        conn.execute("SET statement_timeout = 0")  # allow() holds in a transaction only
        conn.execute("VACUUM ANALYZE")


def _database(url: str) -> Database:
    return Database(url, application="marco bench", connections=2)


def _ended(database: Database) -> list[UUID]:
    with database.transaction() as conn:
        rows = conn.execute("SELECT id FROM jobs WHERE finished_at IS NOT NULL ORDER BY id")
        return [row[0] for row in rows]


def _search(url: str, database: Database, count: int) -> None:
    found = Settings.model_validate({"DATABASE_URL": url})
    runner = Runner(found, database, InstantRuntime, WORKER)
    for seed in range(count):
        work = job(seed, *SEARCHES[seed % len(SEARCHES)], reflection="branch")
        with database.transaction() as conn:
            jobs.insert(conn, [work], tenant=TENANTS[0], batch_id=uuid4())
        runner.run_next()


def _copy_jobs(url: str, sources: Sequence[UUID], count: int) -> None:
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
        conn.execute(
            _copied("jobs", _OTHER, "job.id", "made.id"),
            {"tenant": random.choice(TENANTS), "batch": uuid4()},
        )
        for table in schema.insert_only():
            if table not in _SHARED:
                # In the order in which they were written: audit_log numbers its rows as they come.
                columns = schema.TABLES[table].columns.values()
                keys = (f"job.{c.name}" for c in columns if c.key)
                order = ", ".join(["made.id", *keys])
                conn.execute(_copied(table, {"job_id": "made.id"}, "job.job_id", order))
        seals.seal(conn, ids)


def _copied(table: str, other: dict[str, str], source: str, order: str) -> Composed:
    columns = [
        c.name for c in schema.TABLES[table].columns.values() if c.default != schema.IDENTITY
    ]
    values = [other.get(name, f'job."{name}"') for name in columns]
    return SQL(
        "INSERT INTO {table} ({names}) SELECT {values} FROM made"
        " JOIN {table} AS job ON {source} = made.source ORDER BY {order}"
    ).format(
        table=Identifier(table),
        names=SQL(", ").join(map(Identifier, columns)),
        values=SQL(", ".join(values)),
        source=SQL(source),
        order=SQL(order),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="make bench-store")
    parser.add_argument("--jobs", type=int, default=10_000, help="to store: 100 nodes each")
    parser.add_argument("--keep", action="store_true", help="keep them for another run (3 GB)")
    asked = parser.parse_args()
    report("store", measure(asked.jobs, keep=asked.keep), GOALS)
