"""What may be queued, and that one idempotency key is one job however many submit it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from marco_search.errors import QueueFull, QuotaExceeded
from marco_search.store.db import Database
from producer import Producer
from producer.uploads import when_room
from tests.integration.toys import Interrupted, question, runner, settings_for
from worker.shutdown import Shutdown

NO_REDIS = "redis://127.0.0.1:1/0"


@contextmanager
def producer_with(database_url: str, **limits: int) -> Iterator[Producer]:
    with Producer(settings=settings_for(database_url, NO_REDIS, **limits)) as made:
        yield made


def stored(producer: Producer) -> int:
    with producer._database.transaction() as conn:
        row = conn.execute("SELECT count(*) FROM jobs").fetchone()
    assert row is not None
    return int(row[0])


def test_a_full_queue_takes_nothing_and_says_when_to_try_again(database_url: str) -> None:
    with producer_with(database_url, max_queued=3) as producer:
        first = producer.submit_many([question(idempotency_key="k"), question()])
        with pytest.raises(QueueFull, match=r"MARCO_MAX_QUEUED allows \(3\)") as caught:
            producer.submit_many([question(), question()])
        assert caught.value.retryable
        assert caught.value.retry_after_s
        assert stored(producer) == 2
        producer.submit(question())
        with pytest.raises(QueueFull):
            producer.submit(question())
        # What is known already takes no room.
        assert producer.submit(question(idempotency_key="k")).id == first[0].id
        with pytest.raises(QueueFull) as caught:
            producer.submit_many([question()] * 4)
        assert not caught.value.retryable
        waited: list[float] = []

        def sleep(seconds: float) -> None:
            waited.append(seconds)
            producer.cancel(first[0])

        when_room(lambda: producer.submit_many([question()]), waits=True, sleep=sleep)
        assert waited == [5.0]


def test_a_quota_binds_its_tenant_only(database_url: str) -> None:
    with producer_with(database_url, tenant_max_queued=2) as producer:
        producer.submit_many([question(tenant="a")] * 2)
        with pytest.raises(QuotaExceeded, match="'a'"):
            producer.submit(question(tenant="a"))
        producer.submit(question(tenant="b"))
        producer.set_quota(3, "a")
        producer.submit(question(tenant="a"))
        producer.set_quota(0, "b")
        with pytest.raises(QuotaExceeded):
            producer.submit_many([question(tenant="a"), question(tenant="b")])
        producer.set_quota(None, "b")
        producer.submit(question(tenant="b"))
        assert stored(producer) == 5


def test_a_job_that_was_paused_while_it_ran_leaves_its_place_in_the_queue(
    database_url: str, redis_url: str, database: Database
) -> None:
    limited, shutdown = settings_for(database_url, redis_url, max_queued=1), Shutdown()
    with Producer(settings=limited) as producer:
        job = producer.submit(question())

        def pause() -> None:
            producer.pause(job)
            shutdown.request(60)

        runner(limited, database, Interrupted(1, pause), shutdown=shutdown).run_next()
        assert producer.status(job).state == "queued"
        producer.submit(question("2?"))
        with pytest.raises(QueueFull):
            producer.submit(question("3?"))


@pytest.mark.parametrize("conflict", [False, True])
def test_a_batch_of_more_than_may_ever_be_queued_goes_on_as_there_is_room(
    database_url: str, conflict: bool
) -> None:
    """Also if its lines are stored one by one, since a key in them belongs to another job."""
    lines = [
        json.dumps({"kind": "reasoning", "question": f"{i}?", "idempotency_key": f"k{i}"}).encode()
        for i in range(9)
    ]
    with producer_with(database_url, tenant_max_queued=3) as producer:
        if conflict:
            producer.cancel(producer.submit(question("another", idempotency_key="k5")))
        counts = []
        for _ in lines:
            counts.append(stored(producer) - conflict)
            try:
                batch = producer.submit_batch(lines, source="file")
                break
            except QuotaExceeded as full:
                assert full.retryable
            with producer._database.transaction() as conn:
                queued = conn.execute("SELECT id FROM jobs WHERE state = 'queued'").fetchall()
            for (job_id,) in queued:
                producer.cancel(job_id)
        assert counts == sorted(set(counts))
        assert batch.completed_at
        assert stored(producer) == 9  # with the conflict: eight of the batch and the other job
        assert batch.refused == conflict


def test_a_quota_holds_from_the_moment_it_is_set(database_url: str) -> None:
    with producer_with(database_url, max_queued=100_000) as producer:
        producer.set_quota(1000, "default")
        producer.submit(question())  # whose room is known for the next ones
        producer.set_quota(0, "default")
        with pytest.raises(QuotaExceeded):
            producer.submit(question())


def test_a_batch_of_a_tenant_that_may_queue_nothing_is_refused(database_url: str) -> None:
    with producer_with(database_url) as producer:
        producer.set_quota(0, "default")
        lines = [b'{"kind": "reasoning", "question": "?"}'] * 4
        with pytest.raises(QuotaExceeded, match="more than may ever be queued") as caught:
            producer.submit_batch(lines, waits=True)
    assert not caught.value.retryable


def test_one_key_submitted_at_once_is_one_job(database_url: str) -> None:
    with producer_with(database_url) as producer, ThreadPoolExecutor(8) as threads:
        job = question(idempotency_key="once")
        handles = list(threads.map(lambda _: producer.submit(job), range(32)))
        assert len({handle.id for handle in handles}) == 1
        assert sum(handle.created for handle in handles) == 1
        assert stored(producer) == 1
