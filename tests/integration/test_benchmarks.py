"""The store's benchmark: its jobs are what searches leave behind, and can be built in parts."""

from __future__ import annotations

import psycopg

from marco_search.store.seal.verification import verify_all
from ops.bench import store


def test_built_jobs_verify_and_a_build_goes_on_where_it_was(database_url: str) -> None:
    for count in (16, 36):
        store.build(database_url, count, processes=1, searched=6)
        with psycopg.connect(database_url) as conn:
            row = conn.execute(
                "SELECT count(*), min(nodes) > 30,"
                " sum(nodes) = (SELECT count(*) FROM nodes) FROM jobs"
            ).fetchone()
        assert row == (count, True, True)
    report = verify_all(database_url, processes=1)
    assert report.ok, report.findings
    assert report.jobs == 36
