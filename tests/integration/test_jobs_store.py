"""Jobs in Postgres: submitting, claiming, cancelling, and who may write."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import psycopg
import pytest

from marco_search import schema
from marco_search.errors import (
    DatabaseUnavailable,
    IdempotencyConflict,
    InvalidSettings,
    JobNotFound,
    LeaseLost,
)
from marco_search.store.db import Database
from marco_search.store.queue import jobs, leases, recovery, scheduling
from marco_search.store.queue.scheduling import PendingWork
from marco_search.store.queue.states import JobState
from marco_search.store.trail import trail
from tests.integration.toys import claim, insert, question, rounds_of, state, wait_until


def expire(database: Database, job_id: object) -> None:
    """Let the job's lease run out."""
    with database.transaction() as conn:
        conn.execute(
            "UPDATE jobs SET lease_expires_at = now() - interval '1 s' WHERE id = %s", [job_id]
        )


def test_a_job_is_stored_with_everything_but_its_expected_answer_in_the_payload(
    database: Database,
) -> None:
    job = question(expected="2", priority="high", metadata={"sheet": 7}, tenant="acme")
    (stored,) = insert(database, job)
    assert stored.created
    with database.transaction() as conn:
        row = conn.execute("SELECT tenant, priority, payload, expected, state FROM jobs").fetchone()
    assert row is not None
    tenant, priority, payload, expected, stored_state = row
    assert (tenant, priority, expected, stored_state) == ("acme", 0, "2", "queued")
    assert payload["metadata"] == {"sheet": 7}
    assert "expected" not in payload
    assert payload["options"]["strategy"] == "step"


def test_the_same_key_and_payload_is_the_same_job(database: Database) -> None:
    first, again = insert(database, question(idempotency_key="k"), question(idempotency_key="k"))
    (later,) = insert(database, question(idempotency_key="k"))
    (other_tenant,) = insert(database, question(idempotency_key="k", tenant="other"))
    assert first.id == again.id == later.id
    assert [first.created, again.created, later.created] == [True, False, False]
    assert other_tenant.id != first.id


def test_the_same_key_with_another_payload_stores_nothing(database: Database) -> None:
    insert(database, question(idempotency_key="k"))
    with pytest.raises(IdempotencyConflict, match="'k'"):
        insert(database, question("Anything?"), question("Another?", idempotency_key="k"))
    with database.transaction() as conn:
        assert conn.execute("SELECT count(*) FROM jobs").fetchone() == (1,)


@pytest.mark.parametrize("several", ["keys", "tenants"])
def test_the_same_keys_at_the_same_moment_in_any_order(database: Database, several: str) -> None:
    known = [question(idempotency_key=key) for key in "amz"]
    if several == "tenants":
        known = [question(idempotency_key="k", tenant=name) for name in "amz"]
    with ThreadPoolExecutor() as threads:
        with database.transaction() as conn:  # both wait for it in the middle
            jobs.insert(conn, [known[1]], tenant="default")
            both = [threads.submit(insert, database, *some) for some in (known, known[::-1])]
            waits = "SELECT FROM pg_locks WHERE NOT granted"
            wait_until(lambda: conn.execute(waits).rowcount == 2, "two wait")
            conn.rollback()
        one, other = (each.result() for each in both)
    assert [job.id for job in one] == [job.id for job in other[::-1]]
    assert sorted(job.created for job in (*one, *other)) == [False] * 3 + [True] * 3


def test_only_one_worker_gets_a_job(database: Database) -> None:
    (job,) = insert(database, question())
    assert claim(database, job.id) is not None
    assert claim(database, job.id) is None
    assert claim(database, uuid4()) is None


def test_a_lease_that_ran_out_can_be_taken_and_the_old_one_writes_nothing(
    database: Database,
) -> None:
    (job,) = insert(database, question())
    _, rounds = rounds_of()
    first = claim(database, job.id)
    assert first is not None
    expire(database, job.id)
    second = claim(database, job.id)
    assert second is not None
    assert second[1].generation == first[1].generation + 1
    old = first[1]
    about = {"type": "X", "message": "x"}
    for write in (
        lambda conn: leases.heartbeat(conn, old),
        lambda conn: leases.poll(conn, old),
        lambda conn: leases.release(conn, old, why="", seconds=0, published=False),
        lambda conn: trail.append(conn, old, rounds[0], seconds=1.0),
        lambda conn: leases.retry(conn, old, delay_s=0, error=about),
        lambda conn: leases.end(conn, old, JobState.FAILED, error=about),
    ):
        with pytest.raises(LeaseLost), database.transaction() as conn:
            write(conn)
    with database.transaction() as conn:
        assert conn.execute("SELECT count(*) FROM nodes").fetchone() == (0,)
        assert not leases.heartbeat(conn, second[1]).cancelled


def test_a_retried_job_waits_for_its_back_off(database: Database) -> None:
    (job,) = insert(database, question())
    claimed = claim(database, job.id)
    assert claimed is not None
    with database.transaction() as conn:
        leases.retry(conn, claimed[1], delay_s=60, error={"type": "X", "message": "later"})
        assert scheduling.due(conn) == []
    assert claim(database, job.id) is None
    with database.transaction() as conn:
        conn.execute("UPDATE jobs SET run_after = now()")
        assert scheduling.due(conn) == [job.id]
    assert claim(database, job.id) is not None


def test_what_must_be_published(database: Database) -> None:
    one, other = insert(database, question(), question())
    with database.transaction() as conn:
        assert scheduling.due(conn) == []  # the one who stores publishes
        scheduling.unpublished(conn, [one.id, other.id])
        assert set(scheduling.due(conn)) == {one.id, other.id}
        assert scheduling.due(conn) == []
    assert claim(database, one.id) is not None
    with database.transaction() as conn:
        assert scheduling.poll_pending(conn, 60) == PendingWork()
        assert scheduling.stale_published(conn, stale_s=60) == []
    with database.transaction() as conn:
        assert scheduling.poll_pending(conn, 0).stale
        assert scheduling.stale_published(conn, stale_s=0) == [other.id]
    expire(database, one.id)
    with database.transaction() as conn:
        assert scheduling.poll_pending(conn, 60).lost
        assert scheduling.due(conn) == []
        assert recovery.reclaim(conn, quarantine_after=2).queued == (one.id,)
        assert scheduling.due(conn) == [one.id]
        assert recovery.reclaim(conn, quarantine_after=2).queued == ()


def test_two_schedulers_do_not_take_the_same_jobs(database: Database) -> None:
    stored = insert(database, *[question() for _ in range(4)])
    with database.transaction() as conn:
        scheduling.unpublished(conn, [job.id for job in stored])
    with database.transaction() as one, database.transaction() as two:
        first = scheduling.due(one, limit=2)
        second = scheduling.due(two)
    assert len(first) == len(second) == 2
    assert not set(first) & set(second)


def test_cancel_ends_a_queued_job_and_asks_a_running_one(database: Database) -> None:
    queued, running = insert(database, question(), question())
    claimed = claim(database, running.id)
    assert claimed is not None
    with database.transaction() as conn:
        assert jobs.cancel(conn, [queued.id])[queued.id] is JobState.CANCELLED
        assert jobs.cancel(conn, [running.id])[running.id] is JobState.RUNNING
        assert jobs.cancel(conn, [queued.id])[queued.id] is JobState.CANCELLED
        assert leases.heartbeat(conn, claimed[1]).cancelled
        assert leases.poll(conn, claimed[1]).cancelled
        with pytest.raises(JobNotFound):
            jobs.cancel(conn, [uuid4()])
        with pytest.raises(JobNotFound, match="'other'"):
            jobs.cancel(conn, [running.id], tenant="other")
    assert claim(database, queued.id) is None


def test_the_log_tells_what_happened_in_order(database: Database) -> None:
    (job,) = insert(database, question())
    with database.transaction() as conn:
        scheduling.log_published(conn, [job.id])
    claimed = claim(database, job.id)
    assert claimed is not None
    with database.transaction() as conn:
        jobs.cancel(conn, [job.id])
        leases.end(conn, claimed[1], JobState.CANCELLED)
        assert state(conn, job.id) is JobState.CANCELLED
        events = conn.execute(
            "SELECT event, generation FROM audit_log WHERE job_id = %s ORDER BY id", [job.id]
        ).fetchall()
    assert events == [
        ("submitted", None),
        ("published", None),
        ("claimed", 1),
        ("cancel_requested", None),
        ("cancelled", 1),
    ]


def test_the_trail_refuses_every_change(database: Database) -> None:
    (job,) = insert(database, question())
    claim(database, job.id)
    for table in schema.insert_only():
        column = next(iter(schema.TABLES[table].columns))
        update = f" {{}} SET {column} = {column}"
        for change in ("UPDATE" + update, "DELETE FROM {}", "TRUNCATE {} CASCADE"):
            refused = pytest.raises(psycopg.errors.RestrictViolation, match="insert only")
            with refused, database.transaction() as conn:
                conn.execute(change.format(table).encode())


def test_nothing_is_written_without_a_claim(database: Database) -> None:
    (job,) = insert(database, question())
    with pytest.raises(psycopg.errors.ForeignKeyViolation), database.transaction() as conn:
        conn.execute(
            "INSERT INTO answers (job_id, generation, rank, key, text, output, confidence, votes,"
            " share, rollout_ids) VALUES (%s, 1, 1, '', '', '', 0, 1, 0, '{}')",
            [job.id],
        )


def test_an_unreachable_database_is_named_without_its_password() -> None:
    database = Database("postgresql://app:secret@127.0.0.1:1/marco", application="test")
    with pytest.raises(DatabaseUnavailable) as caught, database.transaction():
        pass
    assert "127.0.0.1:1" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_what_is_no_url_is_refused_without_repeating_it() -> None:
    with pytest.raises(InvalidSettings) as caught:
        Database("postgresql//app:secret@host", application="test")
    assert "secret" not in str(caught.value)


def test_connections_that_the_server_dropped_are_replaced(database: Database) -> None:
    with database.transaction() as conn:
        conn.execute("SELECT 1")
    with psycopg.connect(database._conninfo, autocommit=True) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    with database.transaction() as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)
