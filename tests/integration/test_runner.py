"""What becomes of a job in a worker: every end it can come to, and going on after a stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Thread
from typing import Any
from uuid import UUID

import pytest

from marco_search import solve
from marco_search.errors import (
    DatabaseUnavailable,
    ModelRefused,
    RuntimeUnavailable,
    SchemaMismatch,
)
from marco_search.jobs import JobResult
from marco_search.runtime.base import Runtime
from marco_search.search.branches import Branch, Expansion, Finish
from marco_search.search.tree import Node, Rollout, Round
from marco_search.settings import Settings
from marco_search.store.db import Conn, Database
from marco_search.store.queue import jobs, leases
from marco_search.store.queue.leases import Lease
from marco_search.store.queue.states import JobState
from marco_search.store.reads import queries
from marco_search.store.reads.queries import JobStatus
from marco_search.store.trail import trail
from tests.integration.toys import (
    WORKER,
    Interrupted,
    insert,
    question,
    runner,
    schedule,
    settings_for,
    wait_until,
)
from tests.toy import ToyRuntime
from worker import finish
from worker.runner import Runner
from worker.shutdown import Shutdown

ROUNDS = 3  # of `question()`


@pytest.fixture
def settings(database_url: str) -> Settings:
    # Redis is not asked.
    return settings_for(database_url, "redis://127.0.0.1:1/0", max_attempts=2)


def status(database: Database, job_id: UUID) -> JobStatus:
    with database.transaction() as conn:
        return queries.statuses(conn, [job_id])[0]


def result(database: Database, job_id: UUID) -> JobResult:
    with database.transaction() as conn:
        return queries.results(conn, [job_id])[0]


def tree(database: Database, job_id: UUID) -> tuple[list[Node], list[Rollout]]:
    with database.transaction() as conn:
        return trail.load(conn, job_id)


def sql(database: Database, statement: str, *values: Any) -> None:
    with database.transaction() as conn:
        conn.execute(statement.encode(), values)


def test_a_job_is_searched_answered_and_explained(settings: Settings, database: Database) -> None:
    job = question(expected="2", options={"seed": 4})
    (stored,) = insert(database, job)
    runner(settings, database, ToyRuntime()).run_next()
    now, outcome = status(database, stored.id), result(database, stored.id)
    assert (now.state, now.attempts, now.model) == (JobState.SUCCEEDED, 1, "toy-marco-o1")
    assert outcome.rollouts == 12
    assert outcome.answer is not None
    assert (now.answer, now.confidence) == (outcome.answer.text, outcome.answer.confidence)
    assert outcome.correct is (outcome.answer.text == "2")
    assert outcome.expected == "2"
    nodes, rollouts = tree(database, stored.id)
    assert (len(nodes), len(rollouts)) == (outcome.nodes, outcome.rollouts)
    with database.transaction() as conn:
        answers = conn.execute(
            "SELECT key, votes, rollout_ids FROM answers WHERE job_id = %s", [stored.id]
        ).fetchall()
        attempt = conn.execute(
            "SELECT runtime, model, seed, prompt, config ->> 'strategy' FROM attempts"
        ).fetchone()
    for key, votes, rollout_ids in answers:
        assert rollout_ids == [r.rollout_id for r in rollouts if r.answer == key]
        assert votes == len(rollout_ids)
    assert attempt is not None
    assert attempt[:3] == ("toy", "toy-marco-o1", 4)
    assert "What is 1 + 1?" in attempt[3]
    assert attempt[4] == "step"


def test_what_rollouts_fell_short_of_is_counted_from_the_root_too(
    settings: Settings, database: Database
) -> None:
    options = {"strategy": "vote", "rollouts": 24}
    runtime = ToyRuntime(failing=0.3, silent=0.3)
    (stored,) = insert(database, question(options=options))
    runner(settings, database, runtime).run_next()
    wanted = solve(question(options=options), runtime=runtime).shortfalls
    assert result(database, stored.id).shortfalls == wanted
    assert wanted is not None
    assert wanted.failed
    assert wanted.untagged


def test_a_second_message_for_the_same_job_does_nothing(
    settings: Settings, database: Database
) -> None:
    (stored,) = insert(database, question())
    runtime = ToyRuntime()
    one = runner(settings, database, runtime)
    one.run_next()
    before = status(database, stored.id)
    one.run_next()
    one.run_next()
    assert status(database, stored.id) == before


@pytest.mark.parametrize("stop_at", [0, 1, 2])
def test_an_attempt_goes_on_where_the_one_before_was_cut_off(
    settings: Settings, database: Database, stop_at: int
) -> None:
    """The tree is the same as in one go, and no committed round is generated again."""
    whole, cut = insert(database, *[question(options={"seed": 9, "rollouts": 24})] * 2)
    reference = Interrupted(-1, lambda: None)
    runner(settings, database, reference).run_next()

    class Killed(BaseException):
        """As a kill: nothing is written after it."""

    def die() -> None:
        raise Killed

    with pytest.raises(Killed):
        runner(settings, database, Interrupted(stop_at, die), "one").run_next()
    assert status(database, cut.id).state is JobState.RUNNING
    sql(database, "UPDATE jobs SET lease_expires_at = now() - interval '1 s'")
    schedule(database)
    second = Interrupted(-1, lambda: None)
    runner(settings, database, second, "two").run_next()
    assert tree(database, cut.id) == tree(database, whole.id)
    assert second.rounds == reference.rounds - stop_at
    ours, theirs = result(database, cut.id), result(database, whole.id)
    assert ours.answers == theirs.answers
    assert status(database, cut.id).attempts == 2


def test_a_worker_that_lost_its_lease_writes_nothing_more(
    settings: Settings, database: Database
) -> None:
    (stored,) = insert(database, question())

    def lose() -> None:
        sql(database, "UPDATE jobs SET lease_expires_at = now() - interval '1 s'")
        schedule(database)
        runner(settings, database, ToyRuntime(), "other").run_next()

    runner(settings, database, Interrupted(1, lose)).run_next()
    now = status(database, stored.id)
    assert (now.state, now.attempts) == (JobState.SUCCEEDED, 2)
    nodes, rollouts = tree(database, stored.id)
    assert [n.node_id for n in nodes] == list(range(1, now.nodes + 1))
    assert len(rollouts) == now.rollouts == 12


def test_a_cancelled_search_stops_and_keeps_its_answers_so_far(
    settings: Settings, database: Database
) -> None:
    (stored,) = insert(database, question(options={"rollouts": 64}))

    def cancel() -> None:
        with database.transaction() as conn:
            jobs.cancel(conn, [stored.id])

    runtime = Interrupted(1, cancel)
    runner(settings, database, runtime).run_next()
    outcome = result(database, stored.id)
    assert (outcome.state, outcome.stop_reason) == ("cancelled", "cancelled")
    assert outcome.answer is not None
    assert runtime.rounds == 2
    assert outcome.rollouts < 64


def test_a_branch_that_fails_alone_in_its_round_costs_no_attempt(
    settings: Settings, database: Database
) -> None:
    class Filtered(ToyRuntime):
        def branch(self, expansions: Sequence[Expansion]) -> list[Branch]:
            error = "BranchFailed: the runtime ended the branch: content_filter"
            return [
                Branch(branch_id=2, finish=Finish.FAILED, error=error) if b.branch_id == 2 else b
                for b in super().branch(expansions)
            ]

    (stored,) = insert(database, question(options={"strategy": "tree", "rollouts": 8}))
    runner(settings, database, Filtered()).run_next()
    now = result(database, stored.id)
    assert (now.state, now.rollouts, now.answer is None) == (JobState.SUCCEEDED, 8, False)
    assert now.shortfalls is not None
    assert now.shortfalls.failed == 1


def test_an_unreachable_runtime_is_retried_later_and_then_dead(
    settings: Settings, database: Database
) -> None:
    (stored,) = insert(database, question())

    def refuse() -> None:
        raise RuntimeUnavailable("nobody there")

    one = runner(settings, database, Interrupted(0, refuse))
    one.run_next()
    now = status(database, stored.id)
    assert (now.state, now.error_type, now.error) == (
        JobState.QUEUED,
        "RuntimeUnavailable",
        "nobody there",
    )
    assert now.run_after > now.created_at
    one.run_next()  # too early: it waits for its back-off
    assert status(database, stored.id).attempts == 1
    sql(database, "UPDATE jobs SET run_after = now()")
    schedule(database)
    runner(settings, database, Interrupted(0, refuse)).run_next()
    assert status(database, stored.id).state is JobState.DEAD
    assert result(database, stored.id).error == "nobody there"


class Overdue(ToyRuntime):
    """Its rounds take longer than an attempt may: Celery says so, and they are aborted."""

    def branch(self, expansions: Sequence[Expansion]) -> list[Branch]:
        os.kill(os.getpid(), signal.SIGUSR1)
        return [
            replace(branch, segments=(), finish=Finish.FAILED, error="BranchFailed: aborted")
            for branch in super().branch(expansions)
        ]


def test_a_round_that_never_fits_into_an_attempt_is_not_begun_for_ever(
    settings: Settings, database: Database
) -> None:
    (stored,) = insert(database, question())
    shutdown = Shutdown()
    one = runner(settings, database, Overdue(), shutdown=shutdown)
    for expected in (JobState.QUEUED, JobState.DEAD):
        with shutdown.deferred_signals(0.0):
            one.run_next()
        assert status(database, stored.id).state is expected
        sql(database, "UPDATE jobs SET run_after = now()")
        schedule(database)
    outcome = result(database, stored.id)
    assert outcome.error_type == "RoundTooLong" and "MARCO_ATTEMPT_S" in str(outcome.error)


def test_a_shortage_of_the_machine_is_retried_later(settings: Settings, database: Database) -> None:
    """It says nothing of the job; what was kept of the search stays, and so does the traceback."""
    (stored,) = insert(database, question())

    def no_more_memory() -> None:
        raise MemoryError

    runner(settings, database, Interrupted(1, no_more_memory)).run_next()
    now = status(database, stored.id)
    assert (now.state, now.error_type, now.rounds) == (JobState.QUEUED, "MemoryError", 1)
    with database.transaction() as conn:
        (kept,) = conn.execute("SELECT last_error FROM jobs").fetchone() or ()
    assert "no_more_memory" in kept["traceback"]
    sql(database, "UPDATE jobs SET run_after = now()")
    schedule(database)
    runner(settings, database, ToyRuntime()).run_next()
    assert status(database, stored.id).state is JobState.SUCCEEDED


def test_a_heartbeat_that_can_not_be_started_is_retried_later(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    (stored,) = insert(database, question())

    class Refused(Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    with monkeypatch.context() as short:
        short.setattr("worker.journal.Thread", Refused)
        runner(settings, database, ToyRuntime()).run_next()
    now = status(database, stored.id)
    assert (now.state, now.error_type) == (JobState.QUEUED, "RuntimeError")


@pytest.mark.parametrize("error", [RuntimeUnavailable("away"), ModelRefused("no"), OSError("?")])
def test_a_worker_without_a_runtime_takes_no_job(
    settings: Settings, database: Database, error: Exception
) -> None:
    """What is wrong with a worker is no fault of the jobs that it would take."""
    (stored,) = insert(database, question())

    def refuse() -> Runtime:
        raise error

    one = Runner(settings, database, refuse, runner(settings, database, ToyRuntime())._worker)
    one.run_next()
    one.run_next()
    now = status(database, stored.id)
    assert (now.state, now.attempts, now.error) == (JobState.QUEUED, 0, None)
    runner(settings, database, ToyRuntime()).run_next()
    assert status(database, stored.id).state is JobState.SUCCEEDED


def test_a_cancel_that_meets_an_error_is_not_forgotten(
    settings: Settings, database: Database
) -> None:
    (stored,) = insert(database, question())

    def cancelled_meanwhile() -> None:
        with database.transaction() as conn:
            assert jobs.cancel(conn, [stored.id])[stored.id] is JobState.RUNNING
        raise RuntimeUnavailable("away")

    runner(settings, database, Interrupted(1, cancelled_meanwhile)).run_next()
    assert finish.finish_one_queued(database, WORKER, set())
    assert status(database, stored.id).state is JobState.CANCELLED
    assert result(database, stored.id).answer is not None


def test_a_runtime_that_comes_back_gives_a_result_without_an_error(
    settings: Settings, database: Database
) -> None:
    (stored,) = insert(database, question())

    def fail() -> None:
        raise RuntimeUnavailable("overloaded")

    one = runner(settings, database, Interrupted(1, fail))
    one.run_next()
    sql(database, "UPDATE jobs SET run_after = now()")
    schedule(database)
    one.run_next()
    outcome = result(database, stored.id)
    assert (outcome.state, outcome.error, outcome.rollouts) == ("succeeded", None, 12)


@pytest.mark.parametrize("error", [ModelRefused("no"), ValueError("oops")])
def test_permanent_errors_and_bugs_fail_at_once(
    settings: Settings, database: Database, error: Exception
) -> None:
    (stored,) = insert(database, question())

    def fail() -> None:
        raise error

    runner(settings, database, Interrupted(0, fail)).run_next()
    outcome = result(database, stored.id)
    assert (outcome.state, outcome.error_type) == ("failed", type(error).__name__)
    with database.transaction() as conn:
        row = conn.execute("SELECT last_error ? 'traceback' FROM jobs").fetchone()
    assert row == (isinstance(error, ValueError),)  # only of a bug
    assert outcome.seconds > 0


def test_a_job_of_another_version_is_left_to_its_workers_ever_longer(
    settings: Settings, database: Database
) -> None:
    """A trail without end would be kept of a job that no worker can read."""
    (stored,) = insert(database, question())
    sql(database, """UPDATE jobs SET payload = payload || '{"kind": "of-tomorrow"}'""")
    one = runner(settings, database, ToyRuntime())
    waits: list[tuple[Any, ...]] = []
    for _ in range(6):
        one.run_next()
        with database.transaction() as conn:
            waits += conn.execute("SELECT extract(epoch FROM run_after - now()) FROM jobs")
        sql(database, "UPDATE jobs SET run_after = now()")
        schedule(database)
    now = status(database, stored.id)
    assert (now.state, now.attempts, now.rollouts) == (JobState.QUEUED, 6, 0)
    first, *_, last = (float(wait) for (wait,) in waits)
    assert first < 20 < 100 < last


TOMORROW = "UPDATE jobs SET plan = jsonb_set(plan, '{config,tomorrow}', '1')"


@pytest.mark.parametrize(
    "ends", ["expires_at = now() - interval '1 s'", "cancel_requested_at = now()"]
)
def test_a_job_that_another_version_began_and_that_is_to_end_is_left_as_well(
    settings: Settings, database: Database, ends: str
) -> None:
    (stored,) = insert(database, question(options={"rollouts": 24}))
    shutdown = Shutdown()
    first = Interrupted(1, lambda: shutdown.request(25.0))
    runner(settings, database, first, shutdown=shutdown).run_next()
    sql(database, f"{TOMORROW}, {ends}")
    schedule(database)
    runner(settings, database, ToyRuntime()).run_next()
    left: set[UUID] = set()  # by a scheduler
    while finish.finish_one_queued(database, WORKER, left):
        pass
    now = status(database, stored.id)
    assert (now.state, now.attempts, now.rounds) == (JobState.QUEUED, 2, 2)
    assert left == {stored.id}


def test_a_job_whose_workers_all_died_is_dead(database: Database) -> None:
    (stored,) = insert(database, question())
    sql(
        database,
        "UPDATE jobs SET state = 'running', losses = 1, lease_generation = 2, lease_owner = 'x',"
        " lease_expires_at = now() - interval '1 s'",
    )
    sql(
        database,
        "INSERT INTO audit_log (job_id, event, detail)"
        " SELECT id, 'worker_lost', '{\"worker\": \"w\"}' FROM jobs",
    )
    schedule(database, quarantine_after=2)
    assert status(database, stored.id).state is JobState.DEAD
    assert "lost" in str(result(database, stored.id).error)


def test_a_worker_that_the_database_has_outgrown_takes_no_job(
    settings: Settings, database: Database
) -> None:
    one = runner(settings, database, ToyRuntime())
    one.run_next()  # connected, and checked once
    insert(database, question())
    sql(database, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(SchemaMismatch, match="9999"):
        one.run_next()
    with database.connect() as conn:  # which is not compared with this version
        assert conn.execute("SELECT attempts FROM jobs").fetchone() == (0,)


def test_the_heartbeat_keeps_the_lease_and_notices_a_cancel(
    database_url: str, database: Database
) -> None:
    quick = settings_for(database_url, "redis://127.0.0.1:1/0", lease_s=1.5, heartbeat_s=0.05)
    (stored,) = insert(database, question(options={"rollouts": 8}))
    seen: list[bool] = []

    def read(query: str) -> Any:
        with database.transaction() as conn:
            row = conn.execute(query.encode()).fetchone()
        assert row is not None
        return row[0]

    def wait_for_a_beat() -> None:
        before = read("SELECT lease_expires_at FROM jobs")
        wait_until(lambda: bool(read("SELECT lease_expires_at FROM jobs") > before), "a beat")
        seen.append(True)

    runner(quick, database, Interrupted(0, wait_for_a_beat)).run_next()
    assert seen == [True]
    assert status(database, stored.id).state is JobState.SUCCEEDED


def test_a_round_waits_for_a_database_that_is_away(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the round was committed and only the answer was lost: it is kept once."""
    (stored,) = insert(database, question())
    append = trail.append
    failures: list[Any] = []

    def unreliable(conn: Conn, *given: Any, **named: Any) -> bool:
        if len(failures) == 1:
            append(conn, *given, **named)
            conn.commit()
        if len(failures) < 2:
            failures.append(given)
            raise DatabaseUnavailable("restarting")
        return append(conn, *given, **named)

    monkeypatch.setattr(trail, "append", unreliable)
    runner(settings, database, ToyRuntime()).run_next()
    now = status(database, stored.id)
    assert (now.state, now.attempts, now.rollouts) == (JobState.SUCCEEDED, 1, 12)
    nodes, rollouts = tree(database, stored.id)
    assert (len(nodes), len(rollouts)) == (now.nodes, 12)


def test_an_end_whose_acknowledgement_is_lost_is_not_written_twice(
    settings: Settings,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The connection is cut after the commit and before the worker learns of it."""
    (stored,) = insert(database, question(expected="2"))
    original = finish.finish
    tries: list[str] = []

    def cut(conn: Conn, *given: Any) -> JobResult:
        ended = original(conn, *given)
        tries.append(ended.state)
        if len(tries) == 1:
            conn.commit()
            with database.connect() as other:
                other.execute("SELECT pg_terminate_backend(%s)", [conn.info.backend_pid])
            conn.execute("SELECT 1")  # fails: the worker takes the job for not ended
        return ended

    monkeypatch.setattr(finish, "finish", cut)
    # No heartbeat meanwhile: it would find the lease gone.
    slow = settings.model_copy(update={"heartbeat_s": 3600.0, "lease_s": 7200.0})
    runner(slow, database, ToyRuntime()).run_next()
    assert tries == [JobState.SUCCEEDED, JobState.SUCCEEDED]
    assert result(database, stored.id).state == "succeeded"
    assert "Traceback" not in caplog.text
    with database.transaction() as conn:
        ends = "SELECT count(*) FROM audit_log WHERE event = 'succeeded'"
        assert conn.execute(ends).fetchone() == (1,)
        assert conn.execute("SELECT count(*) FROM chain WHERE kind = 'job'").fetchone() == (1,)


def _last_round(act: Callable[[], None]) -> Interrupted:
    """A runtime that acts before the last round of `question()`."""
    return Interrupted(ROUNDS - 1, act)


def test_a_cancel_during_the_last_round_counts(settings: Settings, database: Database) -> None:
    (stored,) = insert(database, question())

    def cancel() -> None:
        with database.transaction() as conn:
            jobs.cancel(conn, [stored.id])

    runner(settings, database, _last_round(cancel)).run_next()
    outcome = result(database, stored.id)
    assert (outcome.state, outcome.stop_reason) == ("cancelled", "cancelled")
    assert (outcome.rollouts, len(tree(database, stored.id)[1])) == (12, 12)


def test_a_shutdown_during_the_last_round_loses_nothing_of_it(
    settings: Settings, database: Database
) -> None:
    (stored,) = insert(database, question())
    shutdown = Shutdown()
    stopping = _last_round(lambda: shutdown.request(within_s=60))
    runner(settings, database, stopping, shutdown=shutdown).run_next()
    now = status(database, stored.id)
    assert (now.state, now.rollouts) == (JobState.QUEUED, 12)
    schedule(database)
    second = Interrupted(-1, lambda: None)
    runner(settings, database, second).run_next()
    assert (result(database, stored.id).state, second.rounds) == ("succeeded", 0)


@pytest.mark.parametrize("unstorable", [False, True])
def test_a_search_that_cannot_be_ended_fails_and_keeps_its_rounds(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch, unstorable: bool
) -> None:
    """All of them; but not the last one if that is what can't be stored."""
    (stored,) = insert(database, question())
    append = trail.append

    def refuse(*given: Any, **named: Any) -> Any:
        raise ValueError("a bug")

    def refuse_the_last(conn: Conn, lease: Lease, kept: Round, **named: Any) -> bool:
        return refuse() if kept.number == ROUNDS else append(conn, lease, kept, **named)

    if unstorable:
        monkeypatch.setattr(trail, "append", refuse_the_last)
    else:
        monkeypatch.setattr(trail, "write_answers", refuse)
    runner(settings, database, ToyRuntime()).run_next()
    outcome = result(database, stored.id)
    assert (outcome.state, outcome.error_type) == ("failed", "ValueError")
    stored_rounds = {r.round for r in tree(database, stored.id)[1]}
    assert len(stored_rounds) == ROUNDS - unstorable


def test_an_error_met_while_postgres_is_away_is_kept(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    (stored,) = insert(database, question())
    retry = leases.retry
    failures: list[str] = []

    def away(conn: Conn, *given: Any, **named: Any) -> None:
        failures.append(named["error"]["type"])
        if len(failures) == 1:
            raise DatabaseUnavailable("restarting")
        retry(conn, *given, **named)

    def fail() -> None:
        raise RuntimeUnavailable("the model's server is gone")

    monkeypatch.setattr(leases, "retry", away)
    runner(settings, database, Interrupted(1, fail)).run_next()
    now = status(database, stored.id)
    assert failures == ["RuntimeUnavailable"] * 2
    assert (now.state, now.error) == (JobState.QUEUED, "the model's server is gone")
