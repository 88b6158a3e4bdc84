"""The producer: what is stored, what is refused, and how results are heard of."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import redis

from marco_search.broker import Publisher
from marco_search.errors import (
    BrokerUnavailable,
    DatabaseUnavailable,
    IdempotencyConflict,
    InvalidJob,
    JobNotFound,
    WaitTimeout,
)
from marco_search.store.connect import Database
from producer import AsyncProducer, JobState, Producer
from tests.integration.toys import (
    open_database,
    question,
    runner,
    settings_for,
    sweep,
    wait_until,
)
from tests.toy import ToyRuntime

NO_REDIS = "redis://:secret@127.0.0.1:1/0"


@pytest.fixture
def producer(database_url: str, redis_url: str) -> Iterator[Producer]:
    with Producer(database_url, redis_url) as made:
        yield made


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with open_database(database_url) as opened:
        yield opened


def run(database: Database, *job_ids: UUID) -> None:
    """Be the worker."""
    one = runner(settings_for("postgresql://unused", NO_REDIS), database, ToyRuntime())
    for job_id in job_ids:
        one.run(job_id)


def queued(redis_url: str) -> list[dict[str, object]]:
    """All messages in the queue, the last one first."""
    with redis.Redis.from_url(redis_url) as client:
        return [json.loads(message) for message in client.lrange("marco", 0, -1)]


def test_the_message_has_the_id_and_nothing_of_the_job(producer: Producer, redis_url: str) -> None:
    high = producer.submit(question(priority="high"))
    low = producer.submit(question(priority="low"))
    messages = queued(redis_url)
    for handle, message in zip((low, high), messages, strict=True):
        headers = message["headers"]
        assert isinstance(headers, dict)
        assert headers["id"] == str(handle)
        assert headers["task"] == "marco.run_job"
        assert message["content-type"] == "application/json"
    assert "1 + 1" not in json.dumps(messages)


def test_a_thousand_jobs_at_once(producer: Producer, redis_url: str) -> None:
    handles = producer.submit_many(question(f"What is {i} + 1?") for i in range(1000))
    assert len({handle.id for handle in handles}) == 1000
    assert len(queued(redis_url)) == 1000
    status = producer.status(handles[123])
    assert status.subject == "What is 123 + 1?"
    assert status.state is JobState.QUEUED


def test_one_wrong_job_stores_none(producer: Producer, redis_url: str) -> None:
    good = {"kind": "reasoning", "question": "What is 1 + 1?"}
    with pytest.raises(InvalidJob) as caught:
        producer.submit_many([good, good | {"question": "  "}])
    assert caught.value.field == "jobs[1].question"
    with pytest.raises(IdempotencyConflict):
        producer.submit_many(
            [good | {"idempotency_key": "k"}, question("Another?", idempotency_key="k")]
        )
    with producer.database.transaction() as conn:
        assert conn.execute("SELECT count(*) FROM jobs").fetchone() == (0,)
    assert queued(redis_url) == []


def test_the_same_key_gives_the_same_job_with_its_state(
    producer: Producer, database: Database, redis_url: str
) -> None:
    first = producer.submit(question(idempotency_key="k"))
    run(database, first.id)
    again = producer.submit(question(idempotency_key="k"))
    assert (again.id, again.state, again.created) == (first.id, JobState.SUCCEEDED, False)
    assert len(queued(redis_url)) == 1
    assert producer.wait(again, timeout_s=30).state == "succeeded"


def test_a_producer_of_one_tenant_sees_no_other(
    producer: Producer, database_url: str, redis_url: str
) -> None:
    mine = producer.submit(question(tenant="acme"))
    theirs = producer.submit(question(tenant="other"))
    with Producer(database_url, redis_url, tenant="acme") as acme:
        assert acme.status(mine).tenant == "acme"
        assert acme.status(acme.submit(question())).tenant == "acme"
        for ask in (acme.status, acme.cancel, acme.wait):
            with pytest.raises(JobNotFound):
                ask(theirs)
        with pytest.raises(InvalidJob, match="tenant"):
            acme.submit(question(tenant="other"))


def test_ids_that_name_no_job(producer: Producer) -> None:
    with pytest.raises(JobNotFound, match="no job id"):
        producer.status("17")
    with pytest.raises(JobNotFound):
        producer.wait(uuid4())
    assert producer.wait([]) == []


def test_results_come_as_jobs_end_and_wait_gives_them_in_order(
    producer: Producer, database: Database
) -> None:
    first, second = producer.submit_many([question("First?"), question("Second?")])
    results = producer.results([first, second], timeout_s=60)
    run(database, second.id)
    assert next(results).job_id == str(second)
    worker = threading.Thread(target=run, args=(database, first.id))
    worker.start()
    assert next(results).job_id == str(first)
    assert next(results, None) is None
    worker.join()
    both = producer.wait([str(first), second.id, first])
    assert [result.job_id for result in both] == [str(first), str(second), str(first)]


def test_a_finished_job_is_heard_of_without_polling(
    producer: Producer, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("producer.pending.LOOK_S", 3600.0)
    handle = producer.submit(question())
    worker = threading.Thread(target=run, args=(database, handle.id))
    results = producer.results(handle, timeout_s=100)
    worker.start()
    assert next(results).state == "succeeded"
    worker.join()


def test_word_that_was_lost_is_made_up_for(
    producer: Producer, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection that listens is cut; a job that ends meanwhile is seen all the same."""
    monkeypatch.setattr("producer.pending.LOOK_S", 3600.0)
    handle = producer.submit(question())
    done = threading.Event()

    def cut_and_run() -> None:
        def listening() -> list[tuple[int]]:
            with database.transaction() as conn:
                return conn.execute(
                    "SELECT pid FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
                    " AND datname = current_database()"
                ).fetchall()

        wait_until(lambda: bool(listening()), "the producer listens")
        with database.transaction() as conn:
            conn.execute("SELECT pg_terminate_backend(%s)", listening()[0])
        run(database, handle.id)
        done.set()

    worker = threading.Thread(target=cut_and_run)
    worker.start()
    assert producer.wait(handle, timeout_s=100).state == "succeeded"
    worker.join()


def test_a_wait_that_is_too_long_ends_and_the_job_goes_on(
    producer: Producer, database: Database
) -> None:
    handle = producer.submit(question())
    with pytest.raises(WaitTimeout, match=r"1 of 1 jobs had not ended after 0\.1 s"):
        producer.wait(handle, timeout_s=0.1)
    run(database, handle.id)
    assert producer.wait(handle, timeout_s=0.1).state == "succeeded"


def test_a_cancelled_job_ends_a_wait(producer: Producer) -> None:
    handle = producer.submit(question())
    assert producer.cancel(handle) is JobState.CANCELLED
    assert producer.wait(handle, timeout_s=30).state == "cancelled"


def test_without_redis_a_job_is_stored_and_published_by_the_sweep(
    database_url: str, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), Producer(database_url, NO_REDIS) as producer:
        handle = producer.submit(question())
        assert producer.status(handle).state is JobState.QUEUED
    assert "wait for Redis" in caplog.text
    assert "secret" not in caplog.text
    assert sweep(database_url, redis_url) == 1
    assert sweep(database_url, redis_url) == 0
    assert len(queued(redis_url)) == 1


def test_messages_that_redis_forgot_are_sent_again(
    producer: Producer, database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    handles = producer.submit_many([question(), question(priority="high")])
    assert sweep(database_url, redis_url) == 0
    monkeypatch.setattr("worker.sweep.FORGOTTEN_AFTER_S", 0.0)
    assert sweep(database_url, redis_url) == 0  # they are still in the queue
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
    assert sweep(database_url, redis_url) == len(handles)
    assert len(queued(redis_url)) == len(handles)


def test_a_broken_connection_to_redis_is_replaced(redis_url: str) -> None:
    publisher = Publisher(redis_url, "marco")
    publisher.publish([uuid4()])
    with redis.Redis.from_url(redis_url) as client:
        client.client_kill_filter(_type="normal", skipme=True)
        publisher.publish([uuid4()])
    assert publisher.length() == 2
    publisher.close()
    with pytest.raises(BrokerUnavailable) as caught:
        Publisher(NO_REDIS, "marco").publish([uuid4()])
    assert "secret" not in str(caught.value)


def test_an_unreachable_database_is_an_error_at_once() -> None:
    with (
        Producer("postgresql://app:secret@127.0.0.1:1/marco", NO_REDIS) as producer,
        pytest.raises(DatabaseUnavailable) as caught,
    ):
        producer.submit(question())
    assert "secret" not in str(caught.value)


def test_closing_leaves_no_thread_and_no_connection(
    database_url: str, redis_url: str, database: Database
) -> None:
    before = set(threading.enumerate())
    with Producer(database_url, redis_url) as producer:
        handle = producer.submit(question())
        with pytest.raises(WaitTimeout):
            producer.wait(handle, timeout_s=0.1)
    assert set(threading.enumerate()) <= before
    with database.transaction() as conn:
        left = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'marco producer'"
        wait_until(lambda: conn.execute(left).fetchone() == (0,), "connections are gone")


def test_the_asynchronous_producer(database_url: str, redis_url: str, database: Database) -> None:
    async def work() -> None:
        async with AsyncProducer(database_url, redis_url) as producer:
            one = await producer.submit(question("One?"))
            more = await producer.submit_many([question(f"{i}?") for i in range(20)])
            cancelled = await producer.submit(question("Never?"))
            assert await producer.cancel(cancelled) is JobState.CANCELLED
            with pytest.raises(WaitTimeout):
                await producer.wait(one, timeout_s=0.1)
            waits = [asyncio.create_task(producer.wait(job, timeout_s=100)) for job in more]
            await asyncio.to_thread(run, database, one.id, *(job.id for job in more))
            results = await asyncio.gather(*waits)
            assert [result.job_id for result in results] == [str(job) for job in more]
            assert (await producer.wait(one)).state == "succeeded"
            assert (await producer.status(one)).nodes > 0
            seen = [result.state async for result in producer.results([one, cancelled])]
            assert sorted(seen) == ["cancelled", "succeeded"]

    asyncio.run(work())


def test_importing_the_producer_loads_neither_worker_nor_engine() -> None:
    code = (
        "import producer, sys\n"
        "bad = [m for m in ('worker', 'numpy', 'tokenizers', 'sglang', 'sqlalchemy')"
        " if m in sys.modules]\n"
        "sys.exit(', '.join(bad) or 0)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
