"""A real worker process on real services: from submit to result, and what it survives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from select import select
from typing import Any

import pytest
from redis import Redis

from marco_search.broker import Publisher
from producer import JobHandle, JobState, JobStatus, Producer
from tests.integration.toy_worker import DEADLY
from tests.integration.toys import environment, process, question, settings_for, wait_until

PATIENCE_S = 120


@contextmanager
def worker(
    database_url: str, redis_url: str, *, processes: int = 1, delay_s: float = 0.0, **more: Any
) -> Iterator[subprocess.Popen[bytes]]:
    settings = settings_for(database_url, redis_url, lease_s=3.0, heartbeat_s=0.5, **more)
    command = [sys.executable, "-m", "tests.integration.toy_worker", str(processes), str(delay_s)]
    with process(command, environment(settings)) as child:
        yield child


@pytest.fixture
def producer(database_url: str, redis_url: str) -> Iterator[Producer]:
    with Producer(database_url, redis_url) as made:
        yield made


def only_child(pid: int) -> int:
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def unread(pid: int) -> bool:
    """Whether a pipe that the process reads from, but for its standard input, has data in it."""
    for end in Path(f"/proc/{pid}/fd").iterdir():
        reads = end.lstat().st_mode & 0o600 == 0o400
        if int(end.name) > 2 and reads and str(end.readlink()).startswith("pipe:"):
            with end.open("rb", buffering=0) as pipe:
                if select([pipe], [], [], 0)[0]:
                    return True
    return False


def threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def running(producer: Producer, job: JobHandle) -> JobStatus:
    """The job's status once it is in the middle of its search."""

    def begun() -> bool:
        status = producer.status(job)
        assert not status.final, status.error
        return status.rounds >= 1

    wait_until(begun, "the job is running", PATIENCE_S)
    return producer.status(job)


def test_from_submit_to_result(producer: Producer, database_url: str, redis_url: str) -> None:
    with worker(database_url, redis_url, processes=2):
        jobs = producer.submit_many(
            [question(f"What is {i} + {i}?", expected=str(i)) for i in range(8)]
        )
        results = producer.wait(jobs, timeout_s=PATIENCE_S)
        assert [result.state for result in results] == ["succeeded"] * 8
        assert all(result.answer is not None for result in results)
        # Every message once more: nothing happens.
        publisher = Publisher(redis_url, "marco")
        publisher.publish([job.id for job in jobs])
        extra = producer.submit(question("And one more?", priority="low"))
        publisher.close()
        assert producer.wait(extra, timeout_s=PATIENCE_S).state == "succeeded"
    assert [producer.status(job).attempts for job in jobs] == [1] * 8
    with producer._database.transaction() as conn:
        counts = conn.execute(
            "SELECT (SELECT count(*) FROM nodes), (SELECT sum(nodes) FROM jobs),"
            " (SELECT count(*) FROM answers WHERE rank = 1)"
        ).fetchone()
    assert counts is not None
    assert counts[0] == counts[1] > 0
    assert counts[2] == 9


def test_jobs_submitted_without_redis_are_found(
    producer: Producer, database_url: str, redis_url: str
) -> None:
    with Producer(database_url, "redis://127.0.0.1:1/0") as cut_off:
        job = cut_off.submit(question())
    with worker(database_url, redis_url):
        assert producer.wait(job, timeout_s=PATIENCE_S).state == "succeeded"


@pytest.mark.usefixtures("with_hangups")
@pytest.mark.parametrize("stop_signal", [signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP])
def test_a_stopping_worker_hands_its_job_on(
    producer: Producer, database_url: str, redis_url: str, stop_signal: signal.Signals
) -> None:
    """After the round, at once, and no attempt is counted as failed or lost."""
    job = producer.submit(question(options={"rollouts": 40}))
    with worker(database_url, redis_url, delay_s=0.3) as child:
        running(producer, job)
        child.send_signal(stop_signal)
        assert child.wait(60) == 0
    before = producer.status(job)
    assert (before.state, before.lease_owner) == (JobState.QUEUED, None)
    assert before.rounds >= 1
    with worker(database_url, redis_url):
        assert producer.wait(job, timeout_s=PATIENCE_S).state == "succeeded"
    with producer._database.transaction() as conn:
        counts = conn.execute("SELECT attempts, failures, losses FROM jobs").fetchone()
        rounds = conn.execute("SELECT count(DISTINCT round) FROM rollouts").fetchone()
        events = conn.execute("SELECT event FROM audit_log WHERE event = 'released'").fetchall()
    assert counts == (2, 0, 0)
    assert rounds == (producer.status(job).rounds,)
    assert len(events) == 1


@pytest.mark.usefixtures("with_hangups")
def test_a_terminal_that_goes_ends_no_process_in_its_job(
    producer: Producer, database_url: str, redis_url: str
) -> None:
    """It signals them all; the worker's main process says what becomes of the others."""
    job = producer.submit(question(options={"rollouts": 40}))
    with worker(database_url, redis_url, delay_s=0.3) as main:
        running(producer, job)
        os.kill(only_child(main.pid), signal.SIGHUP)
        main.send_signal(signal.SIGHUP)
        assert main.wait(60) == 0
    before = producer.status(job)
    assert (before.state, before.lease_owner) == (JobState.QUEUED, None)


def test_a_worker_leaves_though_a_child_was_just_handed_a_message(
    producer: Producer, database_url: str, redis_url: str
) -> None:
    """Celery forgets a message that no child has taken yet; the child must not wait for it."""
    with (
        closing(Publisher(redis_url, "marco")) as publisher,
        Redis.from_url(redis_url) as redis,
        worker(database_url, redis_url, worker_scheduler=False) as main,
    ):
        job = producer.submit(question())
        assert producer.wait(job, timeout_s=PATIENCE_S).state == "succeeded"
        # It asks for the next message only when its one process is free.
        asks = lambda: any("b" in c["flags"] for c in redis.client_list())  # noqa: E731
        wait_until(asks, "the worker is idle")
        child = only_child(main.pid)
        os.kill(child, signal.SIGSTOP)
        publisher.publish([job.id])
        wait_until(lambda: unread(child), "the message is with the child")
        before = threads(main.pid)
        main.send_signal(signal.SIGTERM)
        wait_until(lambda: threads(main.pid) > before, "Celery waits for its child")
        os.kill(child, signal.SIGCONT)
        # Celery alone would take half a minute.
        assert main.wait(20) == 0


def test_a_job_of_a_killed_process_goes_on_from_its_last_round(
    producer: Producer, database_url: str, redis_url: str
) -> None:
    job = producer.submit(question(options={"rollouts": 40}))
    with worker(database_url, redis_url, delay_s=0.3):
        before = running(producer, job)
        assert before.lease_owner is not None
        os.kill(int(before.lease_owner.rpartition(":")[2]), signal.SIGKILL)
        result = producer.wait(job, timeout_s=PATIENCE_S)
    after = producer.status(job)
    assert (result.state, after.attempts) == ("succeeded", 2)
    with producer._database.transaction() as conn:
        rounds = conn.execute(
            "SELECT generation, count(DISTINCT round), min(round) FROM rollouts"
            " WHERE job_id = %s GROUP BY generation ORDER BY generation",
            [job.id],
        ).fetchall()
    assert [generation for generation, _, _ in rounds] == [1, 2]
    assert rounds[0][1] >= before.rounds
    assert rounds[1][2] == rounds[0][1] + 1
    assert sum(count for _, count, _ in rounds) == after.rounds


def test_a_job_that_kills_its_workers_gets_no_third_and_holds_up_no_other(
    producer: Producer, database_url: str, redis_url: str
) -> None:
    deadly = producer.submit(question(DEADLY))
    with worker(database_url, redis_url, processes=2):
        harmless = producer.submit_many([question(f"What is {i} + 1?") for i in range(4)])
        result = producer.wait(deadly, timeout_s=PATIENCE_S)
        assert {r.state for r in producer.wait(harmless, timeout_s=PATIENCE_S)} == {"succeeded"}
    assert (result.state, result.error_type) == ("dead", "WorkerLost")
    assert producer.status(deadly).attempts == 2
    with producer._database.transaction() as conn:
        names = conn.execute(
            "SELECT worker FROM attempts WHERE job_id = %s ORDER BY generation", [deadly.id]
        ).fetchall()
    assert all(name in str(result.error) for (name,) in names)


def test_a_job_past_its_time_gives_way_and_goes_on(
    producer: Producer, database_url: str, redis_url: str
) -> None:
    """Celery's soft time limit ends the attempt after its round, and takes nothing from the job."""
    long = producer.submit(question(options={"rollouts": 64}))
    with worker(database_url, redis_url, delay_s=0.2, attempt_s=1.0):
        running(producer, long)
        short = producer.submit(question(tenant="other", options={"rollouts": 4}))
        assert producer.wait([long, short], timeout_s=PATIENCE_S)[0].state == "succeeded"
    with producer._database.transaction() as conn:
        row = conn.execute(
            "SELECT attempts > 1, failures, losses FROM jobs WHERE id = %s", [long.id]
        ).fetchone()
        ended = conn.execute("SELECT id FROM jobs ORDER BY finished_at").fetchall()
    assert row == (True, 0, 0)
    assert ended == [(short.id,), (long.id,)]


def test_a_job_waits_while_workers_have_another_model(
    producer: Producer, database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with worker(database_url, redis_url, delay_s=0.3):
        old = producer.submit(question(options={"rollouts": 64}))
        running(producer, old)
    waits = producer.status(old)
    assert (waits.state, waits.attempts) == (JobState.QUEUED, 1)

    monkeypatch.setenv("TOY_REVISION", "1" * 64)
    with worker(database_url, redis_url):
        other = producer.submit(question("What is 2 + 2?"))
        assert producer.wait(other, timeout_s=PATIENCE_S).state == "succeeded"
        wait_until(lambda: producer.waiting_for_model() == [old.id], "it is met", PATIENCE_S)
        assert producer.status(old).attempts == 1
        (new,) = producer.restart(old).values()
        assert producer.wait(new, timeout_s=PATIENCE_S).revision == "1" * 64
        ended = producer.wait(old, timeout_s=PATIENCE_S)
    assert (ended.state, ended.revision) == ("cancelled", "0" * 64)
    assert ended.rollouts > 0


def test_a_job_that_another_version_wrote_is_left_to_its_workers(
    producer: Producer, database_url: str, redis_url: str
) -> None:
    """As in a rolling update that changes no table."""
    asked, begun = producer.submit(question()), producer.submit(question(options={"rollouts": 64}))

    def change(query: str) -> int:
        with producer._database.transaction() as conn:
            return conn.execute(query.encode()).rowcount

    producer.pause(asked)
    with worker(database_url, redis_url, delay_s=0.1):
        running(producer, begun)
        producer.pause(begun)
        wait_until(lambda: producer.status(begun).state == "queued", "it pauses", PATIENCE_S)
        change("""UPDATE jobs SET payload = payload || '{"newer": 1}' WHERE plan IS NULL""")
        change("""UPDATE jobs SET plan = jsonb_set(plan, '{config,newer}', '1')""")
        for job in (asked, begun):
            producer.resume(job)
        left = """SELECT DISTINCT job_id FROM audit_log
            WHERE event = 'released' AND detail ->> 'why' ~ 'version'"""
        wait_until(lambda: change(left) == 2, "both are left", PATIENCE_S)
        for job in (asked, begun):
            found = producer.status(job)
            assert (found.state, found.error) == ("queued", None)
        change("UPDATE jobs SET run_after = now(), plan = plan #- '{config,newer}',"
               " payload = payload - 'newer'")  # fmt: skip
        ended = producer.wait([asked, begun], timeout_s=PATIENCE_S)
    assert [result.state for result in ended] == ["succeeded", "succeeded"]


def test_a_running_job_is_cancelled(producer: Producer, database_url: str, redis_url: str) -> None:
    job = producer.submit(question(options={"rollouts": 2000}))
    with worker(database_url, redis_url, delay_s=0.1):
        running(producer, job)
        assert producer.cancel(job) is JobState.RUNNING
        result = producer.wait(job, timeout_s=PATIENCE_S)
    assert result.state == "cancelled"
    assert 0 < result.rollouts < 2000
