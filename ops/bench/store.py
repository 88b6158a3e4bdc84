"""How fast an auditor's questions are answered among 10,000 stored jobs: `make bench-store`.

--jobs N   jobs to store (10,000, which is about a million nodes)
--keep     leave the database under MARCO_HOME/bench-store (some 3 GB), for another run

Every query of docs/sql.md that is about one job is asked of many jobs, as the owner and as an
auditor who sees one tenant; those about the whole database a few times.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from statistics import median, quantiles
from typing import Any
from uuid import UUID

import psycopg

from marco_search import migrations, settings
from marco_search.local import local_services
from marco_search.local.layout import Layout
from marco_search.store.reads.reader_sql import run_query, with_values
from marco_search.store.seal.verify_all import verify_all
from ops.bench import stored_jobs
from ops.docs.questions import Question, read

JOBS = 10_000
SAMPLES = 60  # jobs that each question about one job is asked of
RUNS = 3  # of a question about the whole database
PROCESSES = 2
AUDITOR = "bench_auditor"


def measure(jobs: int = JOBS, *, keep: bool = False) -> dict[str, Any]:
    """All figures, by their keys. Times are in the unit that ends the key."""
    home = settings.load().home.absolute() / "bench-store"
    with local_services(home) as services:
        url = services.database_url
        migrations.upgrade(url)
        began = time.perf_counter()
        stored_jobs.build(url, jobs, PROCESSES)
        found: dict[str, Any] = {"build_s": time.perf_counter() - began}
        with psycopg.connect(url, autocommit=True) as conn:
            found |= _size(conn)
            found |= _answered(conn)
        report = verify_all(url, processes=PROCESSES)
        found["verify_s"] = report.seconds
        found["verify_nodes_per_s"] = report.nodes / report.seconds
        found["verify_fits"] = report.fits
        found["load_average"] = os.getloadavg()[0]
    if not keep:
        Layout(home).purge()
    return found


def _size(conn: psycopg.Connection[Any]) -> dict[str, Any]:
    row = conn.execute(
        "SELECT (SELECT count(*) FROM jobs), (SELECT count(*) FROM nodes),"
        " (SELECT sum(generated_tokens)::bigint FROM jobs),"
        " round(pg_database_size(current_database()) / 1e6)::int"
    ).fetchone()
    assert row is not None, "a query without a table returns a row"
    return dict(zip(("jobs", "nodes", "tokens", "database_mb"), row, strict=True))


def _answered(conn: psycopg.Connection[Any]) -> dict[str, Any]:
    """Times of all questions; the slowest of those about one job, and of the others."""
    found: dict[str, Any] = {}
    questions = read()
    of_one_job = [question for question in questions if question.about_one_job]
    tenant = stored_jobs.TENANTS[0]
    for question in of_one_job:
        p50, p95 = _of_jobs(conn, question, _some_jobs(conn, None))
        found |= {f"q{question.number:02}_p50_ms": p50, f"q{question.number:02}_p95_ms": p95}
    found["slowest_query_p95_ms"] = max(found[f"q{q.number:02}_p95_ms"] for q in of_one_job)
    theirs = _some_jobs(conn, tenant)
    with _as_auditor(conn, tenant):
        times = [_of_jobs(conn, question, theirs)[1] for question in of_one_job]
    found["slowest_auditor_query_p95_ms"] = max(times)
    for question in questions:
        if not question.about_one_job:
            times = [_milliseconds(conn, question.sql) for _ in range(RUNS)]
            found[f"q{question.number:02}_whole_database_s"] = median(times) / 1000
    return found


def _some_jobs(conn: psycopg.Connection[Any], tenant: str | None) -> list[UUID]:
    rows = conn.execute(
        "SELECT job_id FROM audit.jobs WHERE %(tenant)s::text IS NULL OR tenant = %(tenant)s"
        " ORDER BY job_id",
        {"tenant": tenant},
    ).fetchall()
    return [row[0] for row in Random(0).choices(rows, k=SAMPLES)]


def _of_jobs(
    conn: psycopg.Connection[Any], question: Question, jobs: Sequence[UUID]
) -> tuple[float, float]:
    """Milliseconds: the middle, and the 95th of a hundred."""
    times = [_milliseconds(conn, with_values(question.sql, {"job": str(i)})) for i in jobs]
    return median(times), quantiles(times, n=20)[-1]


def _milliseconds(conn: psycopg.Connection[Any], query: str) -> float:
    began = time.perf_counter()
    run_query(conn, query, timeout_s=300)
    return 1000 * (time.perf_counter() - began)


@contextmanager
def _as_auditor(conn: psycopg.Connection[Any], tenant: str) -> Iterator[None]:
    """The session of an auditor who may see one tenant."""
    conn.execute(f"DROP ROLE IF EXISTS {AUDITOR}")
    conn.execute(f"CREATE ROLE {AUDITOR} IN ROLE marco_auditor")
    conn.execute("INSERT INTO auditors VALUES (%s, %s) ON CONFLICT DO NOTHING", [AUDITOR, tenant])
    conn.execute(f"SET SESSION AUTHORIZATION {AUDITOR}")
    try:
        yield
    finally:
        conn.execute("RESET SESSION AUTHORIZATION")


def main() -> None:
    """Measure, print, and write MARCO_HOME/bench/store.json."""
    parser = argparse.ArgumentParser(prog="make bench-store")
    parser.add_argument("--jobs", type=int, default=JOBS)
    parser.add_argument("--keep", action="store_true")
    given = parser.parse_args()
    found = measure(given.jobs, keep=given.keep)
    file = Path(settings.load().home) / "bench" / "store.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=2) + "\n")
    for key, value in found.items():
        print(f"{key:32} {value:,.3f}" if isinstance(value, float) else f"{key:32} {value}")
    print(f"Written to {file}")


if __name__ == "__main__":
    main()
