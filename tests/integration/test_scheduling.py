"""Whose turn it is: shares between tenants, priorities that age, one claim for each job."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from uuid import UUID

from marco_search.store.db import Database
from marco_search.store.queue import jobs, leases
from marco_search.store.queue.leases import Claim, Lease
from marco_search.store.queue.states import JobState
from tests.integration.toys import WORKER, open_database, question, settings_for
from tests.toy import ToyRuntime
from worker.process import Process


def submit(database: Database, count: int, **more: object) -> list[UUID]:
    given = [question(f"What is {i} + 1?", **more) for i in range(count)]
    with database.transaction() as conn:
        return [job.id for job in jobs.insert(conn, given, tenant="default")]


def take(database: Database) -> Claim | None:
    with database.transaction() as conn:
        claim = leases.claim_next(conn, WORKER, lease_s=60)
        if claim is not None:
            lease = Lease(job_id=claim.job_id, generation=claim.generation, seconds=60)
            leases.begin(conn, lease, WORKER, None, None)
    return claim


def end(database: Database, claim: Claim) -> None:
    lease = Lease(job_id=claim.job_id, generation=claim.generation, seconds=60)
    with database.transaction() as conn:
        leases.end(conn, lease, JobState.SUCCEEDED)


def served(database: Database, count: int, at_once: int = 2) -> list[UUID]:
    """The jobs that so many workers take, in order."""
    running: list[Claim] = []
    order = []
    for _ in range(count):
        claim = take(database)
        assert claim is not None
        order.append(claim.job_id)
        running.append(claim)
        if len(running) >= at_once:
            end(database, running.pop(0))
    return order


def test_a_thousand_jobs_of_one_tenant_do_not_delay_others(database: Database) -> None:
    submit(database, 1000, tenant="many", priority="high")
    few = set(submit(database, 10, tenant="few"))
    assert few <= set(served(database, 21))


def test_a_job_given_back_keeps_its_place_in_its_batch(database: Database) -> None:
    batch = submit(database, 12)
    first = take(database)
    assert first is not None
    with database.transaction() as conn:
        lease = Lease(job_id=first.job_id, generation=first.generation, seconds=60)
        leases.release(conn, lease, why="the worker stops", seconds=0.0, published=True)
    assert served(database, 12) == batch


def test_priorities_order_a_tenants_own_jobs(database: Database) -> None:
    low, normal, high = (submit(database, 2, priority=p) for p in ("low", "normal", "high"))
    assert served(database, 6) == [*high, *normal, *low]


def test_a_low_job_is_served_under_a_steady_stream_of_high_ones(database: Database) -> None:
    def one(priority: str) -> UUID:
        with database.transaction() as conn:
            stored = jobs.insert(conn, [question(priority=priority)], tenant="default", aging_s=0.1)
        return stored[0].id

    low = one("low")
    order = []
    for _ in range(2000):  # two levels are worth 0.2 s of waiting
        one("high")
        one("high")
        order += served(database, 1, at_once=1)
        if order[-1] == low:
            break
    assert order[-1] == low
    assert len(order) > 1


def test_workers_that_claim_at_once_get_each_job_once(database_url: str) -> None:
    with open_database(database_url) as database:
        wanted = submit(database, 60) + submit(database, 4, tenant="other")
        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(lambda _: take(database), range(70)))
    taken = [claim.job_id for claim in found if claim is not None]
    assert sorted(taken) == sorted(wanted)


def test_a_job_that_waits_for_its_back_off_delays_no_other(database: Database) -> None:
    first, second = submit(database, 2)
    claim = take(database)
    assert claim is not None
    assert claim.job_id == first
    lease = Lease(job_id=first, generation=claim.generation, seconds=60)
    with database.transaction() as conn:
        leases.retry(conn, lease, delay_s=60, error={"type": "X", "message": "later"})
    claim = take(database)
    assert claim is not None
    assert claim.job_id == second
    assert take(database) is None


def test_statements_planned_for_few_jobs_read_no_whole_table_when_there_are_many(
    database_url: str, redis_url: str, database: Database
) -> None:
    worker = Process(settings_for(database_url, redis_url), lambda _: ToyRuntime())

    def scanned() -> list[tuple[str, int]]:
        with worker.database.transaction() as conn:
            conn.execute("SELECT pg_stat_force_next_flush()")
        with worker.database.transaction() as conn:
            return conn.execute(  # of webhooks there are few
                "SELECT relname, seq_scan FROM pg_stat_user_tables"
                " WHERE relname <> 'webhooks' ORDER BY 1"
            ).fetchall()

    def run(number: int) -> None:
        for _ in range(number):
            worker.runner.run_next()

    with closing(worker):
        submit(database, 10, options={"strategy": "cot"})
        run(10)  # with tables that are almost empty
        submit(database, 1000, options={"strategy": "cot"})
        before = scanned()
        run(10)
        assert scanned() == before
        with worker.database.transaction() as conn:
            planned = conn.execute("SELECT max(custom_plans) FROM pg_prepared_statements")
            assert planned.fetchone() == (0,)
