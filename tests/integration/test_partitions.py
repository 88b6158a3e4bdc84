"""Partitions by month: rows land in theirs, queries read one, and none can be changed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import sql

from marco_search import schema
from marco_search.store.db import Database
from marco_search.store.queue import jobs
from marco_search.store.trail import partitions, trail
from tests.integration.toys import claim, insert, question, rounds_of

PARTITIONED = ("answers", "audit_log", "nodes", "rollouts")


def with_a_tree(database: Database) -> UUID:
    (job,) = insert(database, question())
    claimed = claim(database, job.id)
    assert claimed is not None
    with database.transaction() as conn:
        trail.append(conn, claimed[1], rounds_of()[1][0], seconds=1.0)
    return job.id


def test_an_id_belongs_to_the_month_of_its_time() -> None:
    low = partitions.lower_bound(datetime(1970, 2, 3, tzinfo=UTC))
    assert low == UUID(int=31 * 24 * 3600 * 1000 << 80)
    now = datetime.now(UTC)
    later = datetime(now.year + now.month // 12, now.month % 12 + 1, 1, tzinfo=UTC)
    assert partitions.lower_bound(now) < jobs.new_job_id() < partitions.lower_bound(later)


def test_rows_land_in_their_month_and_a_query_reads_no_other(database: Database) -> None:
    job_id = with_a_tree(database)
    with database.transaction() as conn:
        for table in ("nodes", "rollouts", "audit_log"):
            found = conn.execute(
                sql.SQL("SELECT DISTINCT tableoid::regclass::text FROM {}").format(
                    sql.Identifier(table)
                )
            ).fetchall()
            assert found == [(f"partitions.{table}_{datetime.now(UTC):%Y_%m}",)]
        plan = explained(conn, "SELECT * FROM audit.tokens WHERE job_id = %s", [job_id])
    assert f"nodes_{datetime.now(UTC):%Y_%m}" in plan
    assert "_default" not in plan


def explained(conn: psycopg.Connection[Any], query: str, values: list[Any]) -> str:
    return "\n".join(row[0] for row in conn.execute(f"EXPLAIN {query}", values))


def test_an_id_of_any_time_is_taken(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    for old in ("00000000-0000-7000-8000-000000000000", "ffffffff-ffff-7fff-bfff-ffffffffffff"):
        monkeypatch.setattr(jobs, "new_job_id", lambda old=old: UUID(old))
        assert str(with_a_tree(database)) == old
    with database.transaction() as conn:
        where = conn.execute("SELECT DISTINCT tableoid::regclass::text FROM nodes").fetchall()
    assert where == [("partitions.nodes_default",)]


def test_months_are_made_ahead_once(database: Database) -> None:
    with database.transaction() as conn:
        assert partitions.ensure(conn) == []
        made = partitions.ensure(conn, ahead=partitions.MONTHS_AHEAD + 1)
        assert len(made) == len(PARTITIONED)
        assert partitions.ensure(conn, ahead=partitions.MONTHS_AHEAD + 1) == []
        with pytest.raises(psycopg.errors.RaiseException):
            partitions.ensure(conn, ahead=1000)


def test_a_month_whose_rows_came_before_its_partition_stays_in_the_default_one(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.now(UTC)
    future = datetime(now.year + 1, now.month, 1, tzinfo=UTC)
    early = UUID(int=partitions.lower_bound(future).int + 1)
    monkeypatch.setattr(jobs, "new_job_id", lambda: early)
    with_a_tree(database)
    with database.transaction() as conn:
        made = partitions.ensure(conn, ahead=12)
        assert f"answers_{future:%Y_%m}" in made
        assert f"nodes_{future:%Y_%m}" not in made
        assert conn.execute("SELECT count(*) > 0 FROM nodes").fetchone() == (True,)


def test_every_partition_refuses_every_change(database: Database) -> None:
    with_a_tree(database)
    with database.transaction() as conn:
        partitions.ensure(conn, ahead=5)
        tables = [
            row[0]
            for row in conn.execute(
                "SELECT inhrelid::regclass::text FROM pg_inherits"
                " WHERE inhparent::regclass::text = ANY (%s)",
                [schema.insert_only()],
            )
        ]
    assert len(tables) == len(PARTITIONED) * 7
    for table in tables:
        for change in ("UPDATE {} SET job_id = job_id", "DELETE FROM {}", "TRUNCATE {} CASCADE"):
            refused = pytest.raises(psycopg.errors.RestrictViolation, match="insert only")
            with refused, database.transaction() as conn:
                conn.execute(change.format(table))


def test_a_month_can_be_taken_away_and_jobs_and_attempts_stay(database: Database) -> None:
    job_id = with_a_tree(database)
    month = f"{datetime.now(UTC):%Y_%m}"
    with database.transaction() as conn:
        for table in PARTITIONED:
            conn.execute(f"ALTER TABLE {table} DETACH PARTITION partitions.{table}_{month}")
            conn.execute(f"DROP TABLE partitions.{table}_{month}")
        assert trail.load(conn, job_id) == ([], [])
        kept = conn.execute(
            "SELECT j.nodes > 0, a.worker FROM audit.attempts AS a JOIN audit.jobs AS j"
            " USING (job_id) WHERE job_id = %s",
            [job_id],
        ).fetchall()
    assert kept == [(True, "test")]
