"""Every way a job can end is sealed, once for each end, also when several end at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import psycopg
import pytest

from marco_search.audit import canonical
from marco_search.audit.findings import JobReport, Status
from marco_search.audit.formats import FORMATS, NEWEST
from marco_search.errors import JobNotFound, ModelRefused, RuntimeUnavailable
from marco_search.store.db import Database
from marco_search.store.queue import dead_letters, jobs, recovery, scheduling
from marco_search.store.queue.states import JobState
from marco_search.store.seal.verification import verify_all, verify_job
from marco_search.store.trail import rows
from tests.integration.toys import (
    Interrupted,
    claim,
    insert,
    question,
    run_job,
    runner,
    settings_for,
    state,
)
from tests.toy import ToyRuntime


def search(database: Database, url: str, job_id: UUID, runtime: ToyRuntime | None = None) -> None:
    settings = settings_for(url, "redis://127.0.0.1:1/0", max_attempts=1)
    run_job(runner(settings, database, runtime or ToyRuntime()), database, job_id)


def ends_as(database: Database, job_id: UUID, expected: JobState) -> JobReport:
    with database.transaction() as conn:
        assert state(conn, job_id) is expected
    report = verify_job(database, job_id)
    assert (report.status, report.findings) == (Status.VALID, ())
    return report


def failing(error: Exception) -> Interrupted:
    def fail() -> None:
        raise error

    return Interrupted(1, fail)


def test_every_end_is_sealed(database: Database, database_url: str) -> None:
    done, broken, dead, dropped, stopped, late = insert(
        database, *[question(options={"seed": i}) for i in range(6)]
    )
    search(database, database_url, done.id)
    search(database, database_url, broken.id, failing(ModelRefused("no")))
    search(database, database_url, dead.id, failing(RuntimeUnavailable("gone")))

    def cancel() -> None:
        with database.transaction() as conn:
            jobs.cancel(conn, [stopped.id])

    search(database, database_url, stopped.id, Interrupted(1, cancel))
    with database.transaction() as conn:
        jobs.cancel(conn, [dropped.id])
        conn.execute("UPDATE jobs SET expires_at = now() WHERE id = %s", [late.id])
    with database.transaction() as conn:
        recovery.expire_unbegun(conn)
    reports = [
        ends_as(database, done.id, JobState.SUCCEEDED),
        ends_as(database, broken.id, JobState.FAILED),
        ends_as(database, dead.id, JobState.DEAD),
        ends_as(database, stopped.id, JobState.CANCELLED),
        ends_as(database, dropped.id, JobState.CANCELLED),
        ends_as(database, late.id, JobState.EXPIRED),
    ]
    assert [r.seq for r in reports] == [1, 2, 3, 4, 5, 6]
    assert verify_all(database_url).links == 7


def test_a_job_that_runs_is_checked_but_not_vouched_for(
    database: Database, database_url: str
) -> None:
    (job,) = insert(database, question())
    claim(database, job.id)
    assert verify_job(database, job.id).status is Status.OPEN
    assert verify_all(database_url).open_jobs == 1
    with pytest.raises(JobNotFound):
        verify_job(database, UUID(int=1))


def test_a_dead_job_that_was_put_back_has_two_links(database: Database, database_url: str) -> None:
    """What the first covers must still be there, although the second stands."""
    (job,) = insert(database, question())
    search(database, database_url, job.id, failing(RuntimeUnavailable("gone")))
    first = ends_as(database, job.id, JobState.DEAD)
    with database.transaction() as conn:
        assert dead_letters.requeue(conn, [job.id]) == [job.id]
    assert verify_job(database, job.id).status is Status.OPEN
    search(database, database_url, job.id)
    second = ends_as(database, job.id, JobState.SUCCEEDED)
    assert (first.seq, second.seq) == (1, 2)
    assert first.root != second.root
    assert 0 < first.nodes < second.nodes
    tamper(database_url, 'UPDATE jobs SET payload = payload || \'{"question": "9?"}\'')
    found = verify_job(database, job.id).findings
    assert (found[0].table, found[0].what) == ("jobs", "the request was changed")


def tamper(url: str, statement: str) -> None:
    with psycopg.connect(url) as conn:
        conn.execute("SET session_replication_role = replica")
        conn.execute(statement.encode())


def test_a_scheduler_notes_nothing_of_a_job_that_has_ended(
    database: Database, database_url: str
) -> None:
    """It tells the broker first, and the job may be over by the time it writes that down."""
    over, waiting = insert(database, question(), question(options={"seed": 1}))
    search(database, database_url, over.id)
    with database.transaction() as conn:
        scheduling.log_published(conn, [over.id, waiting.id])
        noted = conn.execute("SELECT job_id FROM audit_log WHERE event = 'published'").fetchall()
    assert noted == [(waiting.id,)]
    assert verify_all(database_url).findings == ()


def test_jobs_that_end_at_once_make_one_chain(database: Database, database_url: str) -> None:
    stored = insert(database, *[question(options={"seed": i, "rollouts": 4}) for i in range(12)])
    settings = settings_for(database_url, "redis://127.0.0.1:1/0")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: runner(settings, database, ToyRuntime()).run_next(), stored))
    report = verify_all(database_url)
    assert report.findings == ()
    assert (report.jobs, report.links) == (12, 13)


def test_a_job_whose_end_is_rolled_back_leaves_no_link(
    database: Database, database_url: str
) -> None:
    (job,) = insert(database, question())

    class Crash(Exception):
        pass

    with pytest.raises(Crash), database.transaction() as conn:
        jobs.cancel(conn, [job.id])
        raise Crash
    assert verify_all(database_url).links == 1


def test_several_processes_find_what_one_finds(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = insert(database, *[question(options={"seed": i}) for i in range(4)])
    for job in stored:
        search(database, database_url, job.id)
    tamper(database_url, "DELETE FROM nodes WHERE node_id = 2")
    one = verify_all(database_url, processes=1)
    monkeypatch.setattr("marco_search.store.seal.verification._NODES_A_RANGE", 30)
    monkeypatch.setattr("marco_search.store.seal.verification._ALONE_BELOW", 0)
    many = verify_all(database_url, processes=2)
    assert (one.jobs, one.nodes, one.findings) == (many.jobs, many.nodes, many.findings)
    assert len({f.job_id for f in many.findings}) == 4


def test_the_canonical_form_is_what_postgres_sends(database: Database, database_url: str) -> None:
    """Built from values it is the same bytes: rows kept elsewhere hash to the same."""
    (job,) = insert(
        database,
        question(expected="2", metadata={"é": "a\u2028b", "n": 1.5, "long": 1e17, "small": 1e-9}),
    )
    search(database, database_url, job.id, ToyRuntime(failing=0.2))
    with database.transaction() as conn:
        sent = rows.read(conn, FORMATS[NEWEST].kinds, rows.of_jobs([job.id]))[0][job.id]
        for name, kind in FORMATS[NEWEST].kinds.items():
            columns = ", ".join(
                f"{c}::text" if t == "jsonb" else c for c, t in kind.columns.items()
            )
            key = kind.key or kind.job
            query = f"SELECT {columns} FROM {kind.table} WHERE {kind.job} = %s ORDER BY {key}"  # noqa: S608
            with conn.cursor(binary=True) as cursor:
                values: list[Any] = cursor.execute(query.encode(), [job.id]).fetchall()
            assert values
            assert [canonical.encode(kind.columns, v) for v in values] == [d for _, d in sent[name]]
    ends_as(database, job.id, JobState.SUCCEEDED)
