"""The producer: what is stored, what is refused, and how results arrive."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import io
import json
import logging
import multiprocessing
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import psycopg
import pytest
import redis

from marco_search.broker import PAUSE_S, Publisher
from marco_search.errors import (
    BatchNotFound,
    BrokerUnavailable,
    DatabaseUnavailable,
    IdempotencyConflict,
    InvalidJob,
    JobNotFound,
    WaitTimeout,
)
from marco_search.store.db import Database
from producer import EVERYONE, AsyncProducer, JobState, Producer
from tests.integration.conftest import with_path
from tests.integration.toys import (
    question,
    run_job,
    runner,
    settings_for,
    tick,
    wait_until,
)
from tests.toy import ToyRuntime

NO_REDIS = "redis://:secret@127.0.0.1:1/0"


@pytest.fixture
def producer(database_url: str, redis_url: str) -> Iterator[Producer]:
    with Producer(database_url, redis_url) as made:
        yield made


def run(database: Database, *job_ids: UUID) -> None:
    """Be the worker."""
    one = runner(settings_for("postgresql://unused", NO_REDIS), database, ToyRuntime())
    for job_id in job_ids:
        run_job(one, database, job_id)


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
    with producer._database.transaction() as conn:
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


def test_no_method_touches_or_shows_a_job_of_another_tenant(
    producer: Producer, database: Database, database_url: str, redis_url: str
) -> None:
    """Every public method is called, those added later too, with ids of another tenant."""
    ended, waiting, failed = (producer.submit(question(tenant="other")).id for _ in range(3))
    run(database, ended)
    with database.transaction() as conn:
        conn.execute(
            "UPDATE jobs SET state = 'failed', finished_at = now(), attempts = 1 WHERE id = %s",
            [failed],
        )
        conn.execute("UPDATE jobs SET begun_on = 'x', parked_at = now() WHERE id = %s", [waiting])
    stored = "SELECT row_to_json(j)::text FROM jobs j UNION ALL SELECT row_to_json(t)::text"
    stored += " FROM tenants t UNION ALL SELECT row_to_json(l)::text FROM audit_log l"
    stored += " UNION ALL SELECT row_to_json(b)::text FROM batches b ORDER BY 1"
    with Producer(database_url, redis_url, tenant="other") as other:
        theirs = other.submit_batch([b'{"kind": "reasoning", "question": "Mine?"}']).id

    def everything() -> list[Any]:
        with database.transaction() as conn:
            return conn.execute(stored.encode()).fetchall()

    given = {"job": waiting, "jobs": [ended, waiting, failed], "max_queued": 1, "tenant": "other"}
    given["batch_id"] = theirs
    before = everything()
    with Producer(database_url, redis_url, tenant="acme") as acme:
        for name, method in public(Producer).items():
            if name in ("submit", "submit_many", "submit_batch", "close"):
                continue
            names = [n for n in inspect.signature(method).parameters if n in given]
            try:
                found = getattr(acme, name)(**{n: given[n] for n in names})
                found = list(found) if isinstance(found, Iterator) else found
            except (JobNotFound, InvalidJob):
                continue
            assert not found, name
    assert everything() == before


def public(kind: type) -> dict[str, Any]:
    found = inspect.getmembers(kind, callable)
    return {name: method for name, method in found if not name.startswith("_")}


def test_the_asynchronous_producer_has_the_same_methods() -> None:
    assert public(AsyncProducer).keys() == public(Producer).keys()
    for name, method in public(Producer).items():
        same = getattr(AsyncProducer, name)
        waits = inspect.iscoroutinefunction(same) or inspect.isasyncgenfunction(same)
        assert waits == (name != "for_tenant"), name
        of = [inspect.signature(m).parameters.values() for m in (method, same)]
        assert [str(p) for p in of[0]] == [str(p) for p in of[1]], name
        assert same.__doc__, name


def test_wrong_types_are_refused_and_nothing_is_stored(
    producer: Producer, database: Database, redis_url: str
) -> None:
    wrong: Any
    for wrong in (5, None, "What?", [question()], b"{}", object()):
        with pytest.raises(InvalidJob):
            producer.submit(wrong)
    for wrong in (5, None, "What?", question(), {"kind": "reasoning"}, [question(), 5]):
        with pytest.raises(InvalidJob):
            producer.submit_many(wrong)
    with pytest.raises(InvalidJob, match="batch_id"):
        producer.submit_many([question()], batch_id=7)  # type: ignore[arg-type]
    for wrong in (5, None, b"x", {"id": 1}, 1.5):
        with pytest.raises(TypeError, match="given as"):
            producer.status(wrong)
    for wrong in (5, None, [5], [None]):
        with pytest.raises(TypeError, match="given as"):
            producer.wait(wrong)
        with pytest.raises(TypeError, match="given as"):
            producer.states(wrong)
    for wrong in ("5", -1, float("nan"), [1]):
        with pytest.raises(TypeError, match="timeout_s"):
            producer.wait(producer.submit(question(idempotency_key="k")), timeout_s=wrong)
        with pytest.raises(TypeError, match="every_s"):
            next(producer.follow(producer.submit(question(idempotency_key="k")), every_s=wrong))
        with pytest.raises(TypeError, match="poll_s"):
            Producer(poll_s=wrong)
        with pytest.raises(InvalidJob, match="redis_url"):
            Producer(redis_url=5)  # type: ignore[arg-type]
    for wrong in (5, " ", "a\x00b", "x" * 65, ["a"]):
        with pytest.raises(InvalidJob, match="tenant"):
            producer.pause_tenant(wrong)
        with pytest.raises(InvalidJob, match="tenant"):
            Producer(tenant=wrong)
    for wrong in ("5", -1, 2**31, 1.5, True):
        with pytest.raises(InvalidJob, match="max_queued"):
            producer.set_quota(wrong)
        with pytest.raises(InvalidJob, match="limit"):
            producer.dead_letters(limit=wrong)
    for wrong in (5, "a\x00", ["WorkerLost"]):
        with pytest.raises(InvalidJob, match="error"):
            producer.dead_letters(error=wrong)
    for wrong in ("succeeded", 5):
        with pytest.raises(InvalidJob, match="state"):
            producer.dead_letters(state=wrong)
        with pytest.raises(InvalidJob, match="state"):
            producer.cancel_all(state=wrong)
    for change in (producer.pause_tenant, producer.resume_tenant, producer.cancel_all):
        with pytest.raises(InvalidJob, match="tenant"):
            change(tenant="")  # an unset variable, say: not everyone
    with pytest.raises(InvalidJob, match="tenant"):
        producer.set_quota(5, EVERYONE)  # type: ignore[arg-type]
    assert len(queued(redis_url)) == 1


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"lines": "{}"}, "lines"),
        ({"lines": io.StringIO("{}")}, "lines"),
        ({"source": "a\x00"}, "source"),
        ({"source": 5}, "source"),
        ({"batch_id": 5}, "batch_id"),
        ({"options": {"rollouts": 0}}, "rollouts"),
        ({"options": ["rollouts"]}, "options"),
        ({"metadata": {"a": float("nan")}}, "metadata"),
        ({"metadata": {"a": ["\ud800"]}}, "metadata"),
        ({"metadata": {"a": object()}}, "metadata"),
        ({"metadata": json.loads('{"a": ' * 101 + "1" + "}" * 101)}, "metadata"),
    ],
)
def test_a_batch_of_wrong_arguments_is_not_begun(
    producer: Producer, given: dict[str, Any], field: str
) -> None:
    wrong: dict[str, Any] = {"lines": [b'{"kind": "reasoning", "question": "2+2?"}']} | given
    with pytest.raises(InvalidJob) as caught:
        producer.submit_batch(**wrong)
    assert caught.value.field == field
    assert producer.batches() == []


def test_lines_that_hold_what_postgres_can_t_store_are_refused(producer: Producer) -> None:
    names = ["\x00", "\ud800", "a" * 1000]
    lines = [json.dumps({"kind": "reasoning", "question": "2?", name: 1}) for name in names]
    lines += [json.dumps({"custom_id": "a", "body": {name: 1}}) for name in names]
    batch = producer.submit_batch(line.encode() for line in lines)
    assert [line.line for line in producer.refused_lines(batch.id)] == [1, 2, 3, 4, 5, 6]
    part = producer.refused_lines(batch.id, after=2, limit=3)
    assert [line.line for line in part] == [3, 4, 5]
    with pytest.raises(InvalidJob):
        producer.refused_lines(batch.id, limit=-1)


def test_a_line_with_json_deeper_than_any_reader_takes_is_refused_alone(producer: Producer) -> None:
    whole = {"kind": "reasoning", "question": "2?"}
    deep = [json.loads("[" * levels + "]" * levels) for levels in (98, 99, 300, 900)]
    options = [{"overrides": {"template_options": {"a": each}}} for each in deep]
    lines = [json.dumps(whole | {"options": each}) for each in options]
    batch = producer.submit_batch(line.encode() for line in [*lines, json.dumps(whole)])
    assert [line.line for line in producer.refused_lines(batch.id)] == [2, 3, 4]
    assert batch.states == {"queued": 2}


def test_a_batch_is_named_by_its_id_as_text_too(producer: Producer) -> None:
    (job,) = producer.submit_many([question()])
    name = str(job.batch_id)
    assert producer.submit_many([question()], batch_id=name)[0].batch_id == job.batch_id
    assert producer.batch(name).lines == 2
    assert producer.batches(after=name) == []
    assert set(producer.standstill(batch_id=name)) == {"no_worker"}
    assert len(producer.cancel_all(batch_id=name)) == 2
    assert [result.batch_id for result in producer.batch_results(name)] == [name, name]
    assert producer.restart_batch(name) == 2
    for wrong in ("", "17", "\x00"):
        with pytest.raises(BatchNotFound, match="invalid batch id"):
            producer.batch(wrong)
        with pytest.raises(BatchNotFound, match="invalid batch id"):
            producer.batches(after=wrong)


def test_a_copy_of_a_job_is_checked_when_it_is_submitted(producer: Producer) -> None:
    job = question()
    for wrong in ({"question": 5}, {"options": None}, {"question": "\x00"}, {"kind": "new"}):
        with pytest.raises(InvalidJob):
            producer.submit(job.model_copy(update=wrong))
        with pytest.raises(InvalidJob, match=r"^jobs\[1\]"):
            producer.submit_many([job, job.model_copy(update=wrong)])
    assert producer.batches() == []
    handle = producer.submit(job.model_copy(update={"options": {"rollouts": 2}}))
    assert producer.status(handle).state == "queued"


def test_many_jobs_are_cancelled_in_one_call(producer: Producer, database: Database) -> None:
    batch = uuid4()
    theirs = producer.submit(question(tenant="other"))
    some = [job.id for job in producer.submit_many([question(f"{i}?") for i in range(300)])]
    more = producer.submit_many([question(f"{i}?") for i in range(20)], batch_id=batch)
    with pytest.raises(JobNotFound):
        producer.cancel_many([*some, uuid4()])
    assert producer.cancel_all(state=JobState.RUNNING) == {}
    assert set(producer.cancel_all(batch_id=batch)) == {job.id for job in more}
    assert producer.cancel_many(some) == dict.fromkeys(some, JobState.CANCELLED)
    assert producer.cancel_all() == {}
    assert producer.status(theirs).state is JobState.QUEUED
    assert producer.cancel_all(tenant=EVERYONE) == {theirs.id: JobState.CANCELLED}
    assert [r.state for r in producer.wait(some)] == ["cancelled"] * 300
    with database.transaction() as conn:
        # One transaction each: links of one seal have one time.
        assert conn.execute("SELECT count(DISTINCT at), count(*) FROM chain").fetchone() == (4, 322)


def test_ids_that_name_no_job(producer: Producer) -> None:
    with pytest.raises(JobNotFound, match="invalid job id"):
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
    database_url: str, redis_url: str, database: Database
) -> None:
    with Producer(database_url, redis_url, poll_s=3600.0) as producer:
        handle = producer.submit(question())
        worker = threading.Thread(target=run, args=(database, handle.id))
        results = producer.results(handle, timeout_s=100)
        worker.start()
        assert next(results).state == "succeeded"
        worker.join()


def test_word_that_was_lost_is_made_up_for(
    database_url: str, redis_url: str, database: Database
) -> None:
    """The connection that listens is cut; a job that ends meanwhile is seen all the same."""
    producer = Producer(database_url, redis_url, poll_s=3600.0)
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
    with producer:
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


def test_without_redis_a_job_is_stored_and_published_by_the_scheduler(
    database_url: str, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), Producer(database_url, NO_REDIS) as producer:
        handle = producer.submit(question())
        assert producer.status(handle).state is JobState.QUEUED
    assert "wait for Redis" in caplog.text
    assert "secret" not in caplog.text
    assert tick(database_url, redis_url) == 1
    assert tick(database_url, redis_url) == 0
    assert len(queued(redis_url)) == 1


def test_messages_that_redis_lost_are_sent_again(
    producer: Producer, database_url: str, redis_url: str
) -> None:
    handles = producer.submit_many([question(), question(priority="high")])
    assert tick(database_url, redis_url, stale_s=0.0) == 0
    assert tick(database_url, redis_url, stale_s=0.0) == 0  # they are still in the queue
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
    assert tick(database_url, redis_url, stale_s=0.0) == len(handles)
    assert len(queued(redis_url)) == len(handles)


def test_a_stored_job_is_no_error_though_both_services_go_before_it_is_published(
    database_url: str, redis_url: str
) -> None:
    name = urlsplit(database_url).path[1:]
    with (
        psycopg.connect(with_path(database_url, "postgres"), autocommit=True) as other,
        socket.create_server(("127.0.0.1", 0)) as redis_that_goes,
    ):

        def allow(connections: bool) -> None:
            other.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS {connections}".encode())

        def go() -> None:
            taken, _ = redis_that_goes.accept()
            allow(False)
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
            )
            redis_that_goes.close()
            taken.close()

        thread = threading.Thread(target=go)
        thread.start()
        port = redis_that_goes.getsockname()[1]
        try:
            with Producer(database_url, f"redis://127.0.0.1:{port}/0") as producer:
                producer.submit(question())
        finally:
            thread.join()
            allow(True)
    assert tick(database_url, redis_url, stale_s=0.0) == 1
    assert len(queued(redis_url)) == 1


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


def test_threads_wait_for_a_silent_redis_together_not_one_after_the_other() -> None:
    threads, silent = 8, threading.Event()
    taken: list[socket.socket] = []

    def take() -> None:
        with contextlib.suppress(OSError):
            while True:
                taken.append(listening.accept()[0])
                silent.wait()
                taken[-1].close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        publisher = Publisher(f"redis://127.0.0.1:{port}/0", "marco")
        threading.Thread(target=take, daemon=True).start()
        begun = threading.Barrier(threads + 1)

        def publish() -> str:
            begun.wait()
            with pytest.raises(BrokerUnavailable) as caught:
                publisher.publish([uuid4()])
            return str(caught.value)

        with ThreadPoolExecutor(threads) as pool:
            said = [pool.submit(publish) for _ in range(threads)]
            begun.wait()
            wait_until(lambda: bool(taken), "one of them has connected")
            silent.set()
            assert len({each.result() for each in said}) == 1
        assert len(taken) < threads
        # Nor does each job after them wait for the same answer.
        before, began = len(taken), time.monotonic()
        with pytest.raises(BrokerUnavailable):
            publisher.publish([uuid4()])
        assert len(taken) == before or time.monotonic() - began > PAUSE_S
        listening.shutdown(socket.SHUT_RDWR)


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


def test_closing_ends_waits_and_the_next_use_opens_again(
    database_url: str, redis_url: str, database: Database
) -> None:
    producer, closed = Producer(database_url, redis_url, poll_s=3600.0), threading.Semaphore(0)
    handle = producer.submit(question())

    def wait_again_and_again() -> None:
        while True:
            try:
                producer.wait(handle, timeout_s=600)
            except WaitTimeout as error:
                assert "closed" in str(error)
                closed.release()
            else:
                return

    waiting = threading.Thread(target=wait_again_and_again, daemon=True)
    waiting.start()
    for _ in range(5):
        while not closed.acquire(timeout=0.1):  # it may not wait yet
            producer.close()
    run(database, handle.id)
    waiting.join()
    producer.close()

    async def work() -> None:
        async with AsyncProducer(database_url, redis_url, poll_s=3600.0) as producer:
            waiting = asyncio.create_task(producer.wait(await producer.submit(question()), 600))
            while not waiting.done():
                await producer.close()
                await asyncio.wait([waiting], timeout=0.1)
            with pytest.raises(WaitTimeout, match="closed"):
                await waiting

    asyncio.run(work())


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_uses_the_producer_and_leaves_the_connections_to_its_parent(
    database_url: str, redis_url: str, database: Database
) -> None:
    producer = Producer(database_url, redis_url, poll_s=3600.0)
    first = producer.submit(question("One?"))
    here, there = multiprocessing.Pipe()

    def child() -> None:
        second = producer.submit(question("Two?"))
        there.send(second.id)
        there.send(producer.wait([first, second], timeout_s=60))
        producer.close()

    def sessions() -> set[int]:
        query = "SELECT pid FROM pg_stat_activity WHERE application_name = 'marco producer'"
        with database.transaction() as conn:
            return {row[0] for row in conn.execute(query).fetchall()}

    with closing(producer), producer._listener.subscribed(lambda: None):
        wait_until(lambda: len(sessions()) == 2, "the listener has a connection")
        before = sessions()
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        assert here.poll(60)
        run(database, here.recv(), first.id)
        assert here.poll(60)
        assert [result.state for result in here.recv()] == ["succeeded", "succeeded"]
        process.join()
        assert process.exitcode == 0
        assert producer.wait(first).state == "succeeded"
        assert sessions() == before


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
        "bad = ('worker', 'numpy', 'tokenizers', 'sglang', 'sqlalchemy', 'cryptography')\n"
        "bad = [m for m in bad if m in sys.modules]\n"
        "sys.exit(', '.join(bad) or 0)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_others_send_to_the_channel_is_not_listened_to(
    producer: Producer, database_url: str, redis_url: str
) -> None:
    """And a listener that was thrown out comes back."""
    job = producer.submit(question())
    notices: list[UUID | None] = []

    def listening() -> list[int]:
        with producer._database.transaction() as conn:
            rows = conn.execute(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
                " AND query LIKE 'LISTEN%'"
            ).fetchall()
        return [pid for (pid,) in rows]

    with producer._listener.subscribed(lambda: None) as take_notices:

        def heard() -> list[UUID | None]:
            notices.extend(take_notices())
            return notices

        wait_until(lambda: heard() == [None], "the listener listens")
        with producer._database.transaction() as conn:
            for payload in ("garbage", "", "x" * 7000):
                conn.execute("SELECT pg_notify('marco_jobs', %s)", [payload])
            conn.execute("SELECT pg_notify('marco_jobs', %s)", [str(job.id)])
        wait_until(lambda: heard() == [None, job.id], "it hears what counts")
        (pid,) = listening()
        with producer._database.transaction() as conn:
            conn.execute("SELECT pg_terminate_backend(%s)", [pid])
        wait_until(lambda: heard() == [None, job.id, None], "it listens again")


@pytest.mark.parametrize("sync", [True, False])
def test_who_follows_a_job_does_not_read_it_whenever_another_ends(
    producer: Producer, database_url: str, redis_url: str, sync: bool
) -> None:
    job, *others = producer.submit_many([question(options={"seed": i}) for i in range(21)])
    seen: list[JobState] = []

    async def follow() -> None:
        async with AsyncProducer(database_url, redis_url) as own:
            async for (line,) in own.follow(job, every_s=3600):
                seen.append(line.state)

    def follow_here() -> None:
        seen.extend(line.state for (line,) in producer.follow(job, every_s=3600))

    thread = threading.Thread(target=follow_here if sync else lambda: asyncio.run(follow()))
    thread.start()
    for other in others:
        producer.cancel(other)
    producer.cancel(job)
    thread.join(60)
    assert seen[-1] is JobState.CANCELLED
    # At first, once the listener is connected, and at the end.
    assert len(seen) <= 3


AT_ONCE = """
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from marco_search.broker import Publisher
barrier = Barrier(16)
def publisher(_):
    barrier.wait()
    return Publisher("redis://127.0.0.1:1/0", "marco")
with ThreadPoolExecutor(16) as threads:
    print(len(list(threads.map(publisher, range(16)))))
"""


def test_threads_may_begin_at_the_same_moment() -> None:
    done = subprocess.run(
        [sys.executable, "-c", AT_ONCE], check=False, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("16\n", "")
