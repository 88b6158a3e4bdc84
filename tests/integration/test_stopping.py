"""Releases, deadlines, pauses and quarantine: a job goes on where it was, or ends in order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from uuid import UUID

import psycopg
import pytest

from marco_search.errors import DatabaseUnavailable, MarcoError
from marco_search.search.branches import Branch, Expansion, Finish
from marco_search.settings import Settings
from marco_search.store.db import Conn, Database
from marco_search.store.queue import jobs, leases, recovery, tenants
from marco_search.store.queue.states import JobState
from marco_search.store.reads import queries
from marco_search.store.reads.queries import JobStatus
from marco_search.store.seal.verification import verify_all
from marco_search.store.trail import trail
from producer import EVERYONE, Producer
from tests.integration.toys import (
    Interrupted,
    claim,
    insert,
    question,
    runner,
    schedule,
    settings_for,
    tick,
    wait_until,
)
from tests.toy import ToyRuntime
from worker.journal import LeasedJournal
from worker.shutdown import Shutdown

NO_REDIS = "redis://127.0.0.1:1/0"


@pytest.fixture(autouse=True)
def verified(database_url: str) -> Iterator[None]:
    """Whatever became of the jobs, their rows fit the chain, and their numbers each other."""
    yield
    assert verify_all(database_url).findings == ()


@pytest.fixture
def settings(database_url: str) -> Settings:
    return settings_for(database_url, NO_REDIS, heartbeat_s=0.05)


def status(database: Database, job_id: UUID) -> JobStatus:
    with database.transaction() as conn:
        return queries.statuses(conn, [job_id])[0]


def sql(database: Database, statement: str, *values: Any) -> list[Any]:
    with database.transaction() as conn:
        cursor = conn.execute(statement.encode(), values)
        return cursor.fetchall() if cursor.description else []


def watched(database: Database, job_id: UUID, change: Callable[[], None]) -> None:
    """Make the change, and wait until the heartbeat has looked at the job since."""
    change()
    beats: set[Any] = set()

    def twice() -> bool:
        beats.update(sql(database, "SELECT lease_expires_at FROM jobs WHERE id = %s", job_id))
        return len(beats) > 2

    wait_until(twice, "two beats")


class Hanging(ToyRuntime):
    """Its second round hangs until it is aborted."""

    def __init__(self) -> None:
        super().__init__()
        self.rounds = 0
        self.hangs = threading.Event()
        self._aborted = threading.Event()

    def branch(self, expansions: Sequence[Expansion]) -> list[Branch]:
        self.rounds += 1
        if self.rounds < 2:
            return super().branch(expansions)
        self.hangs.set()
        assert self._aborted.wait(60)
        return [
            Branch(branch_id=r.branch_id, finish=Finish.FAILED, error="aborted")
            for e in expansions
            for r in e.branches
        ]

    def abort(self) -> None:
        if self.hangs.is_set():
            self._aborted.set()


def test_a_released_job_goes_on_as_if_nothing_had_happened(
    settings: Settings, database: Database
) -> None:
    whole, cut = insert(database, *[question(options={"seed": 9, "rollouts": 24})] * 2)
    reference = Interrupted(-1, lambda: None)
    runner(settings, database, reference).run_next()
    published: list[UUID] = []
    shutdown = Shutdown()
    first = Interrupted(1, lambda: shutdown.request(25.0))
    more: dict[str, Any] = {"publish": published.append, "shutdown": shutdown}
    runner(settings, database, first, **more).run_next()
    now = status(database, cut.id)
    assert (now.state, now.rounds, now.lease_owner) == (JobState.QUEUED, 2, None)
    assert published == [cut.id]
    assert now.seconds > 0
    assert sql(database, "SELECT failures, losses FROM jobs WHERE id = %s", cut.id) == [(0, 0)]
    second = Interrupted(-1, lambda: None)
    runner(settings, database, second).run_next()
    assert first.rounds + second.rounds == reference.rounds
    with database.transaction() as conn:
        assert trail.load(conn, cut.id) == trail.load(conn, whole.id)
    assert status(database, cut.id).seconds >= now.seconds


def test_a_round_that_takes_too_long_to_stop_is_aborted(
    settings: Settings, database: Database
) -> None:
    (stored,) = insert(database, question(options={"rollouts": 40}))
    runtime = Hanging()
    shutdown = Shutdown()
    threading.Thread(target=lambda: runtime.hangs.wait(60) and shutdown.request(0.0)).start()
    runner(settings, database, runtime, shutdown=shutdown).run_next()
    now = status(database, stored.id)
    assert (now.state, now.rounds) == (JobState.QUEUED, 1)
    assert now.error is None


def test_a_worker_that_stops_begins_nothing(settings: Settings, database: Database) -> None:
    (stored,) = insert(database, question())
    shutdown = Shutdown()
    shutdown.request(20.0)
    runner(settings, database, ToyRuntime(), shutdown=shutdown).run_next()
    assert status(database, stored.id).attempts == 0


def test_a_running_job_expires_with_its_best_answers(
    settings: Settings, database: Database
) -> None:
    (stored,) = insert(database, question(options={"rollouts": 64}, expected="2"))

    def expire() -> None:
        sql(database, "UPDATE jobs SET expires_at = now()")

    runtime = Interrupted(1, lambda: watched(database, stored.id, expire))
    runner(settings, database, runtime).run_next()
    with database.transaction() as conn:
        (result,) = queries.results(conn, [stored.id])
    assert (result.state, result.stop_reason) == ("expired", "deadline")
    assert result.answer is not None
    assert result.correct is not None
    assert 0 < result.rollouts < 64


def test_jobs_expire_in_the_queue(database: Database, database_url: str, redis_url: str) -> None:
    """One that was begun keeps its answers, without a model; one that was not has none."""
    settings = settings_for(database_url, redis_url)
    (begun,) = insert(database, question(options={"rollouts": 64}))
    shutdown = Shutdown()
    stops = Interrupted(1, lambda: shutdown.request(25.0))
    runner(settings, database, stops, shutdown=shutdown).run_next()
    never, later = insert(database, question(expires_in_s=0.001), question(expires_in_s=3600))
    sql(database, "UPDATE jobs SET expires_at = now(), paused_at = now() WHERE id = %s", begun.id)
    tick(database_url, redis_url)
    with database.transaction() as conn:
        one, two = sorted(queries.results(conn, [never.id, begun.id]), key=lambda r: r.rollouts)
    assert (one.state, one.stop_reason, one.error_type) == ("expired", "deadline", "DeadlinePassed")
    assert one.answers == ()
    assert (two.state, two.stop_reason, two.error) == ("expired", "deadline", None)
    assert two.answer is not None
    assert status(database, later.id).state is JobState.QUEUED
    assert sql(database, "SELECT count(*) FROM chain WHERE job_id IS NOT NULL") == [(2,)]


def given_back(database: Database, settings: Settings) -> jobs.JobHandle:
    """A job that a worker has begun, and released when it was stopped."""
    (stored,) = insert(database, question(options={"rollouts": 64}))
    shutdown = Shutdown()
    stops = Interrupted(1, lambda: shutdown.request(25.0))
    runner(settings, database, stops, shutdown=shutdown).run_next()
    return stored


def test_a_job_cancelled_after_it_was_given_back_keeps_its_answers(
    database: Database, database_url: str, redis_url: str
) -> None:
    stored = given_back(database, settings_for(database_url, redis_url))
    with database.transaction() as conn:
        assert jobs.cancel(conn, [stored.id])[stored.id] is JobState.QUEUED
        assert jobs.cancel(conn, [stored.id])[stored.id] is JobState.QUEUED
    tick(database_url, redis_url)
    with database.transaction() as conn:
        (result,) = queries.results(conn, [stored.id])
    assert (result.state, result.stop_reason) == ("cancelled", "cancelled")
    assert result.answer is not None
    asked = "SELECT count(*) FROM audit_log WHERE event = 'cancel_requested'"
    assert sql(database, asked) == [(1,)]
    assert verify_all(database_url).ok


def test_a_lock_that_passes_costs_no_job_its_answers(
    database: Database, database_url: str, redis_url: str
) -> None:
    """Meanwhile others are published."""
    stored = given_back(database, settings_for(database_url, redis_url))
    (other,) = insert(database, question())
    sql(database, "UPDATE jobs SET published_at = NULL WHERE id = %s", other.id)
    with database.transaction() as conn:
        jobs.cancel(conn, [stored.id])
    ended: list[BaseException | int] = []

    def scheduler() -> None:
        try:
            ended.append(tick(database_url, redis_url))
        except MarcoError as error:
            ended.append(error)

    def cancel() -> bool:
        found = sql(
            database,
            "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            " AND application_name LIKE 'marco scheduler%%' AND datname = current_database()",
        )
        return bool(found)

    with psycopg.connect(database_url) as locked:
        locked.execute("LOCK TABLE rollouts IN ACCESS EXCLUSIVE MODE")
        thread = threading.Thread(target=scheduler)
        thread.start()
        wait_until(cancel, "the scheduler waits for the lock")
    thread.join(60)
    assert [type(e) for e in ended] == [DatabaseUnavailable]
    assert status(database, stored.id).state is JobState.QUEUED
    published = sql(database, "SELECT published_at IS NULL FROM jobs WHERE id = %s", other.id)
    assert published == [(False,)]
    tick(database_url, redis_url)
    with database.transaction() as conn:
        (result,) = queries.results(conn, [stored.id])
    assert (result.state, result.answer is None) == ("cancelled", False)


def test_a_job_resumed_just_before_it_is_given_back_is_published(
    database: Database, database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker had seen the pause, and the one who resumed it saw the job still running."""
    settings = settings_for(database_url, redis_url, heartbeat_s=0.05)
    (stored,) = insert(database, question(options={"rollouts": 64}))

    def pause() -> None:
        with database.transaction() as conn:
            jobs.set_paused(conn, stored.id, paused=True)

    write = LeasedJournal.write_unstored

    def late(self: LeasedJournal, conn: Conn) -> bool | None:
        if self.signals.paused:
            with database.transaction() as other:
                assert jobs.set_paused(other, stored.id, paused=False) is JobState.RUNNING
        return write(self, conn)

    monkeypatch.setattr(LeasedJournal, "write_unstored", late)
    runtime = Interrupted(1, lambda: watched(database, stored.id, pause))
    runner(settings, database, runtime).run_next()
    assert status(database, stored.id).state is JobState.QUEUED
    assert tick(database_url, redis_url) == 1


def test_the_budget_of_seconds_counts_over_attempts(settings: Settings, database: Database) -> None:
    (stored,) = insert(database, question(options={"rollouts": 64, "max_seconds": 1000.0}))
    shutdown = Shutdown()
    stops = Interrupted(1, lambda: shutdown.request(25.0))
    runner(settings, database, stops, shutdown=shutdown).run_next()
    sql(database, "UPDATE jobs SET seconds = 1001")
    schedule(database)
    runner(settings, database, ToyRuntime()).run_next()
    now = status(database, stored.id)
    assert (now.state, now.stop_reason, now.rounds) == (JobState.SUCCEEDED, "seconds", 2)


@pytest.mark.parametrize("whom", ["job", "tenant", "all"])
def test_a_paused_job_waits_and_goes_on(
    database: Database, database_url: str, redis_url: str, whom: str
) -> None:
    settings = settings_for(database_url, redis_url, heartbeat_s=0.05)
    with Producer(database_url, redis_url) as producer:
        job = producer.submit(question(options={"rollouts": 24}))

        def pause() -> None:
            if whom == "job":
                producer.pause(job)
            else:
                producer.pause_tenant(EVERYONE if whom == "all" else None)

        runtime = Interrupted(1, lambda: watched(database, job.id, pause))
        one = runner(settings, database, runtime)
        one.run_next()
        now = status(database, job.id)
        assert (now.state, now.rounds) == (JobState.QUEUED, 2)
        one.run_next()
        one.run_next()
        assert status(database, job.id).attempts == 1
        if whom == "job":
            producer.resume(job)
        else:
            producer.resume_tenant(EVERYONE if whom == "all" else None)
        one.run_next()
    assert status(database, job.id).state is JobState.SUCCEEDED
    assert sql(database, "SELECT failures, losses FROM jobs") == [(0, 0)]


def test_a_pause_of_one_tenant_holds_up_no_other(database: Database) -> None:
    insert(database, question(tenant="one"))
    (other,) = insert(database, question(tenant="two"))
    with database.transaction() as conn:
        tenants.set_paused(conn, "one", paused=True)
        assert [pause.tenant for pause in tenants.pauses(conn)] == ["one"]
    settings = settings_for("postgresql://unused", NO_REDIS)
    one = runner(settings, database, ToyRuntime())
    one.run_next()
    one.run_next()
    assert status(database, other.id).state is JobState.SUCCEEDED
    assert sql(database, "SELECT attempts FROM jobs WHERE tenant = 'one'") == [(0,)]


def test_a_job_that_cost_two_workers_is_kept_from_a_third(
    database: Database, database_url: str, redis_url: str
) -> None:
    settings = settings_for(database_url, redis_url)
    (stored,) = insert(database, question(options={"rollouts": 24}))

    class Killed(BaseException):
        """As a kill: nothing is written after it."""

    def die() -> None:
        raise Killed

    # One loss, then a kept round, then two in the same round: the first counts no more.
    for name, kept in (("early", 1), ("first", 1), ("second", 0)):
        with pytest.raises(Killed):
            runner(settings, database, Interrupted(kept, die), name).run_next()
        sql(database, "UPDATE jobs SET lease_expires_at = now() - interval '1 s'")
        schedule(database, quarantine_after=2)
    now = status(database, stored.id)
    assert (now.state, now.error_type) == (JobState.DEAD, "WorkerLost")
    assert "first, second" in str(now.error)
    one = runner(settings, database, ToyRuntime(), "third")
    one.run_next()
    one.run_next()
    assert status(database, stored.id).attempts == 3
    with Producer(database_url, redis_url) as producer:
        (letter,) = producer.dead_letters(error="WorkerLost")
        assert (letter.job_id, letter.rounds) == (stored.id, 2)
        assert producer.dead_letters(state="failed") == []
        assert producer.requeue(stored.id) == [stored.id]
        assert producer.requeue(stored.id) == []
        assert sql(database, "SELECT failures, losses FROM jobs") == [(0, 0)]
        one.run_next()
        assert producer.wait(stored.id, timeout_s=30).state == "succeeded"
    events = [row[0] for row in sql(database, "SELECT event FROM audit_log ORDER BY id")]
    assert [e for e in events if e != "round"] == [
        *("submitted", "claimed", "worker_lost", "claimed", "worker_lost"),
        *("claimed", "worker_lost", "dead"),
        *("requeued", "claimed", "succeeded"),
    ]
    first_of_third = sql(database, "SELECT min(round) FROM rollouts WHERE generation = 4")
    assert first_of_third == [(3,)]


def test_a_lease_is_left_to_its_worker_for_a_moment_after_postgres_has_started(
    database: Database,
) -> None:
    (stored,) = insert(database, question())
    held = claim(database, stored.id)
    assert held is not None
    sql(database, "UPDATE jobs SET lease_expires_at = now() - interval '1 s'")
    with database.transaction() as conn:
        assert recovery.reclaim(conn, quarantine_after=2, grace_s=1e8).queued == ()
        assert not leases.heartbeat(conn, held[1]).paused
        assert recovery.reclaim(conn, quarantine_after=2).queued == ()
