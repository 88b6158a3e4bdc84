"""`marco scheduler` as a process: what it does, that several may run, how it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from marco_search.broker import Publisher
from producer import JobState, Producer
from tests.integration.toys import environment, question, settings_for, wait_until
from worker.scheduler import EVERY_S

ROOT = Path(__file__).parents[2]
NO_REDIS = "redis://127.0.0.1:1/0"


@contextmanager
def scheduler(database_url: str, redis_url: str) -> Iterator[subprocess.Popen[bytes]]:
    settings = settings_for(database_url, redis_url, lease_s=3.0, heartbeat_s=0.5)
    command = [sys.executable, "-m", "marco_search.cli.main", "scheduler"]
    child = subprocess.Popen(command, cwd=ROOT, env=environment(settings), stderr=subprocess.PIPE)
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def test_two_schedulers_publish_reclaim_and_expire(database_url: str, redis_url: str) -> None:
    with Producer(database_url, NO_REDIS) as cut_off:
        jobs = cut_off.submit_many([question()] * 20)
        late = cut_off.submit(question(expires_in_s=0.001))
        lost = cut_off.submit(question())
        with cut_off._database.transaction() as conn:
            conn.execute(
                "UPDATE jobs SET state = 'running', lease_owner = 'gone', lease_generation = 1,"
                " lease_expires_at = now() - interval '1 s' WHERE id = %s",
                [lost.id],
            )
        with (
            closing(Publisher(redis_url, "marco")) as queue,
            scheduler(database_url, redis_url) as one,
            scheduler(database_url, redis_url) as two,
        ):
            wait_until(lambda: queue.length() >= len(jobs) + 1, "all are published")
            wait_until(lambda: cut_off.status(late).state is JobState.EXPIRED, "one has expired")
            assert cut_off.status(lost).state is JobState.QUEUED
            assert queue.length() == len(jobs) + 1  # each once
            # Whichever is killed, the other goes on.
            one.kill()
            again = cut_off.submit(question())
            wait_until(lambda: queue.length() == len(jobs) + 2, "the other goes on")
            assert cut_off.status(again).state is JobState.QUEUED
            two.send_signal(signal.SIGTERM)
            output = two.communicate(timeout=30)[1].decode()
            assert two.returncode == 0, output
            assert "scheduler: stopped" in output


def test_of_many_schedulers_one_ticks_at_a_time(redis_url: str) -> None:
    publishers = [Publisher(redis_url, "marco") for _ in range(4)]
    assert EVERY_S >= 1
    assert sum(publisher.try_acquire_tick(60) for publisher in publishers * 5) == 1
    for publisher in publishers:
        publisher.close()
