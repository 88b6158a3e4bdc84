"""What may be queued, and that one idempotency key is one job however many submit it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from marco_search.errors import QueueFull, QuotaExceeded
from producer import Producer
from producer.uploads import when_room
from tests.integration.toys import question, settings_for

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


def test_one_key_submitted_at_once_is_one_job(database_url: str) -> None:
    with producer_with(database_url) as producer, ThreadPoolExecutor(8) as threads:
        job = question(idempotency_key="once")
        handles = list(threads.map(lambda _: producer.submit(job), range(32)))
        assert len({handle.id for handle in handles}) == 1
        assert sum(handle.created for handle in handles) == 1
        assert stored(producer) == 1
