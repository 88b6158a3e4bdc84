"""The queue from submit to done: with `marco worker`, then with plain Celery."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from psycopg import Connection, connect
from redis import Redis

from marco_search.kinds import ReasoningJob
from ops.bench.queueing import instant, plain
from ops.bench.queueing.place import Place, cpu_s, running, until
from producer import Producer

SUBMITTED, ONE_BY_ONE, CLAIMED = 1000, 150, 300
PROCESSES = 2

Figures = dict[str, float]


def small(number: int) -> ReasoningJob:
    """A job of one rollout: what it takes is what the queue takes."""
    return ReasoningJob.model_validate(
        {"question": f"{number}?", "options": {"strategy": "cot", "seed": number}}
    )


def ours(here: Place) -> Figures:
    """Submit many, drain them; then one by one on an idle worker."""
    urls = here.urls
    jobs = [small(i) for i in range(SUBMITTED)]
    with Producer(urls.database_url, urls.redis_url) as producer:
        producer.wait(producer.submit_many([]), 1)  # connections are made
        submit_s = _seconds(lambda: producer.submit_many(jobs))
        with running(here, instant.command(PROCESSES)) as worker:
            with connect(urls.database_url, autocommit=True) as conn:
                until(
                    lambda: _one(conn, "SELECT count(*) FROM jobs WHERE finished_at IS NULL") == 0
                )
                cpu = cpu_s(worker.pid)
                drain_s = _one(
                    conn, "SELECT extract(epoch FROM max(finished_at) - min(started_at)) FROM jobs"
                )
            for number in range(ONE_BY_ONE):
                producer.wait(producer.submit(small(SUBMITTED + number)), 60)
        with connect(urls.database_url) as conn:
            # Of one server's clock: from the submitting transaction's begin to the claim's.
            waits = conn.execute(
                "SELECT extract(epoch FROM started_at - created_at)::float8 FROM jobs"
                " ORDER BY created_at DESC LIMIT %s",
                [ONE_BY_ONE],
            ).fetchall()
    return {
        "submit_per_s": SUBMITTED / submit_s,
        "jobs_per_s": SUBMITTED / drain_s,
        "overhead_ms_per_job": 1000 * PROCESSES * drain_s / SUBMITTED,
        "overhead_cpu_ms_per_job": 1000 * cpu / SUBMITTED,
        **_percentiles("claim", [wait for (wait,) in waits]),
    }


def plain_celery(here: Place) -> Figures:
    """The same with plain Celery on the same Redis."""
    os.environ["REDIS_URL"] = here.urls.redis_url  # of the app that publishes here
    with Redis.from_url(here.urls.redis_url) as client:
        with plain.app.producer_or_acquire() as producer:
            plain.note.apply_async([-1], producer=producer)  # connections are made
            submit_s = _seconds(
                lambda: [plain.note.apply_async([i], producer=producer) for i in range(SUBMITTED)]
            )
        with running(here, plain.worker_command("plain", PROCESSES)) as worker:
            until(lambda: int(client.llen(plain.DONE)) > SUBMITTED)
            cpu = cpu_s(worker.pid)
            times = [float(line.split()[1]) for line in client.lrange(plain.DONE, 0, -1)]
            waits = [_plain_wait(client, i) for i in range(ONE_BY_ONE)]
        client.delete(plain.DONE)
    drain_s = max(times) - min(times)
    return {
        "plain_submit_per_s": SUBMITTED / submit_s,
        "plain_jobs_per_s": SUBMITTED / drain_s,
        "plain_overhead_ms_per_job": 1000 * PROCESSES * drain_s / SUBMITTED,
        "plain_overhead_cpu_ms_per_job": 1000 * cpu / SUBMITTED,
        **_percentiles("plain_claim", waits),
    }


def _plain_wait(client: Redis, number: int) -> float:
    client.delete(plain.DONE)
    began = time.time()
    plain.note.apply_async([number])
    until(lambda: int(client.llen(plain.DONE)) == 1, every_s=0.001)
    return float(client.lrange(plain.DONE, 0, -1)[0].split()[1]) - began


def _seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def _one(conn: Connection[tuple[object, ...]], query: str) -> float:
    row = conn.execute(query.encode()).fetchone()
    assert row is not None
    return float(str(row[0]))


def _percentiles(name: str, seconds: list[float]) -> Figures:
    ordered = sorted(seconds)
    return {
        f"{name}_p50_ms": 1000 * ordered[len(ordered) // 2],
        f"{name}_p99_ms": 1000 * ordered[int(len(ordered) * 0.99)],
    }
