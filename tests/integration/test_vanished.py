"""Peers that vanish without a word, Redis that refuses, messages and processes that are no good.

Real processes behind a proxy that takes bytes and passes nothing on.
"""

from __future__ import annotations

import base64
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from redis import Redis

from marco_search.broker import Publisher
from marco_search.errors import BrokerUnavailable, SchemaMismatch
from producer import JobStatus, Producer
from tests.integration.test_worker import only_child
from tests.integration.toys import environment, question, settings_for, wait_until
from tests.silent_proxy import silent_proxy

ROOT = Path(__file__).parents[2]
STOP_S = 1.0
ENDS_S = STOP_S + 5  # what worker/watchdog.py promises
PATIENCE_S = 90  # for what never came before


@contextmanager
def process(
    log: Path, words: Sequence[str], database_url: str, redis_url: str, **more: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """Python with these words; what it says goes to `log`."""
    env = environment(settings_for(database_url, redis_url, stop_s=STOP_S, **more))
    with log.open("wb") as file:
        child = subprocess.Popen(
            [sys.executable, "-m", *words], cwd=ROOT, env=env, stdout=file, stderr=file
        )
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(30)
        finally:
            child.kill()


def worker(
    log: Path, urls: tuple[str, str], *, delay_s: float = 0.2, processes: int = 1, **more: Any
) -> Any:
    words = ["tests.integration.toy_worker", str(processes), str(delay_s)]
    return process(log, words, *urls, **more)


def begun(producer: Producer, job: Any) -> JobStatus:
    wait_until(lambda: producer.status(job).rounds >= 1, "the job runs", PATIENCE_S)
    return producer.status(job)


def test_all_parties_notice_that_postgres_and_redis_vanished(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    """With settings as delivered: they connect again, lose nothing and do nothing twice.

    Then the network is gone for good, and all of them stop in time.
    """
    with ExitStack() as stack:
        postgres = stack.enter_context(silent_proxy(database_url))
        redis = stack.enter_context(silent_proxy(redis_url))
        urls = postgres.url(database_url), redis.url(redis_url)
        far = stack.enter_context(Producer(*urls))
        near = stack.enter_context(Producer(database_url, redis_url))
        console_log, worker_log = tmp_path / "console", tmp_path / "worker"
        words = ["marco_search.cli.main", "console", "--port", "0", "--json"]
        console = stack.enter_context(process(console_log, words, *urls))
        scheduler = stack.enter_context(
            process(tmp_path / "scheduler", ["marco_search.cli.main", "scheduler"], *urls)
        )
        job = far.submit(question(options={"rollouts": 2000}))
        main = stack.enter_context(worker(worker_log, urls, processes=2, worker_scheduler=False))
        wait_until(lambda: b"address" in console_log.read_bytes(), "the console is up", PATIENCE_S)
        address = json.loads(console_log.read_text().splitlines()[0])["address"]
        page = f"{address}jobs/{job.id}/tree.json"
        assert httpx.get(page, timeout=PATIENCE_S).status_code == 200
        before = begun(far, job)

        postgres.cut()
        redis.cut()
        assert far.status(job).state == "running"
        later = far.submit(question())
        assert httpx.get(page, timeout=PATIENCE_S).status_code in (200, 503)
        wait_until(lambda: near.status(job).rounds > before.rounds + 2, "rounds go on", PATIENCE_S)
        assert far.wait(later, timeout_s=PATIENCE_S).state == "succeeded"
        assert httpx.get(page, timeout=PATIENCE_S).status_code == 200
        assert near.status(job).attempts == 1, "the lease was kept, nothing was generated again"

        postgres.cut(all_new=True)
        redis.cut(all_new=True)
        stopped_at = time.monotonic()
        for child in (main, scheduler, console):
            child.terminate()
        codes = [child.wait(PATIENCE_S) for child in (main, scheduler, console)]
        # Of the machine's own slowness: as much again.
        assert time.monotonic() - stopped_at < 2 * ENDS_S + 5, worker_log.read_text()
        assert codes[1:] == [0, 0]
        postgres.restore()
        redis.restore()


def _full(redis: Redis) -> None:
    redis.config_set("maxmemory", "1mb")


def _room(redis: Redis) -> None:
    redis.config_set("maxmemory", "0")


def _standby(redis: Redis) -> None:
    redis.execute_command("REPLICAOF", "127.0.0.1", "1")


def _primary(redis: Redis) -> None:
    redis.execute_command("REPLICAOF", "NO", "ONE")


def _wrong_type(redis: Redis) -> None:
    redis.delete("marco")
    redis.set("marco", "not a list")


def _right_type(redis: Redis) -> None:
    redis.delete("marco")


def test_a_worker_outlasts_a_redis_that_refuses(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    log = tmp_path / "worker"
    urls = database_url, redis_url
    kinds = [(_full, _room), (_standby, _primary), (_wrong_type, _right_type)]
    with Producer(*urls) as producer, Redis.from_url(redis_url) as redis, worker(log, urls) as main:
        for spoil, restore in kinds:
            job = producer.submit(question(options={"rollouts": 24}))
            begun(producer, job)
            queued = producer.submit(question())
            lines = log.read_text().count("retrying") + log.read_text().count("WARNING")
            spoil(redis)
            try:
                late = producer.submit(question())

                def noticed(before: int = lines) -> bool:
                    text = log.read_text()
                    return text.count("retrying") + text.count("WARNING") > before

                wait_until(noticed, "the worker says so", PATIENCE_S)
                assert producer.wait(job, PATIENCE_S).state == "succeeded", "what runs goes on"
            finally:
                restore(redis)
            results = producer.wait([job, queued, late], timeout_s=PATIENCE_S)
            assert {result.state for result in results} == {"succeeded"}, spoil.__name__
            assert main.poll() is None, log.read_text()
    assert "Traceback" not in log.read_text()


def _unreadable(good: bytes) -> list[bytes]:
    """Messages that are not ours, each in its own way."""
    raw = [b"", b"5", b"null", b"[]", b"{}", b'"text"', b"\xff\xfe", b"{", b"[" * 60_000]
    raw += [b"\x1b]0;title\x07", b"x" * (1 << 20)]

    def changed(part: str, name: str, value: Any) -> bytes:
        message = json.loads(good)
        (message[part] if part else message)[name] = value
        return json.dumps(message).encode()

    def body(*args: Any) -> str:
        return base64.b64encode(json.dumps([args, {}, {}]).encode()).decode()

    wrong: tuple[Any, ...] = (None, 5, [], "x")
    for name in ("headers", "properties", "body"):
        raw += [changed("", name, value) for value in wrong]
    raw += [changed("", "content-encoding", "klingon"), changed("", "content-type", "python")]
    raw += [changed("", "body", body(*args)) for args in ((), (1,), ("a", "b"), ("no id",))]
    raw += [changed("headers", "task", name) for name in ("celery.backend_cleanup", 5, None)]
    odd: Any
    for name, odd in (("timelimit", "x"), ("eta", "soon"), ("expires", {}), ("compression", "z"),
                        ("id", None), ("retries", "x"), ("stamps", 7)):  # fmt: skip
        raw.append(changed("headers", name, odd))
    for name, value in (("delivery_tag", None), ("body_encoding", "rot13"), ("delivery_info", 5)):
        raw.append(changed("properties", name, value))
    return raw


def _checked(urls: tuple[str, str], *words: str) -> subprocess.CompletedProcess[bytes]:
    """The health check of a container."""
    command = [sys.executable, "-m", "marco_search.cli.main", "worker", "--check", *words]
    env = environment(settings_for(*urls))
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, timeout=60)


def test_messages_that_cannot_be_read_are_dropped_and_cost_nothing(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    log = tmp_path / "worker"
    urls = database_url, redis_url
    with (
        Producer(*urls) as producer,
        Redis.from_url(redis_url) as redis,
        closing(Publisher(redis_url, "marco")) as publisher,
    ):
        publisher.publish([uuid4()])
        (good,) = redis.lrange("marco", 0, -1)
        redis.rpush("marco", *_unreadable(good))
        jobs = producer.submit_many([question()] * 4)
        with worker(log, urls, delay_s=0.0) as main:
            results = producer.wait(jobs, timeout_s=PATIENCE_S)
            assert {result.state for result in results} == {"succeeded"}
            wait_until(lambda: publisher.length() == 0, "the queue is empty", PATIENCE_S)
            assert main.poll() is None
            assert publisher.workers() == [f"celery@{socket.gethostname()}"]
            known = _checked(urls, "--json")
            assert known.returncode == 0 and json.loads(known.stdout)["takes_messages"]
            unknown = _checked(urls, "--name", "another")
            assert unknown.returncode == BrokerUnavailable.exit_code
    output = log.read_text()
    assert "dropped a message that can't be read" in output
    assert "\x1b" not in output
    assert max(map(len, output.splitlines())) < 1000
    assert "Traceback" not in output


def test_processes_that_hang_are_killed_and_replaced(
    database_url: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has no memory for another thread, and one that is stopped and never wakes."""
    monkeypatch.setenv("TOY_SILENT_S", "2")
    log = tmp_path / "worker"
    urls = database_url, redis_url
    given: dict[str, Any] = {"lease_s": 1.0, "heartbeat_s": 0.3}
    with Producer(*urls) as producer, worker(log, urls, **given) as main:
        assert producer.wait(producer.submit(question()), PATIENCE_S).state == "succeeded"
        first = only_child(main.pid)
        threads = Path(f"/proc/{first}/task")
        busy = len([*threads.iterdir()])
        wait_until(lambda: len([*threads.iterdir()]) < busy, "its heartbeat has ended", PATIENCE_S)
        size = int(Path(f"/proc/{first}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(first, resource.RLIMIT_AS, (size - 20 * 2**20, resource.RLIM_INFINITY))
        assert producer.wait(producer.submit(question()), PATIENCE_S).state == "succeeded"
        assert only_child(main.pid) != first
        job = producer.submit(question(options={"rollouts": 40}))
        owner = begun(producer, job).lease_owner
        assert owner is not None
        os.kill(int(owner.rpartition(":")[2]), signal.SIGSTOP)
        result = producer.wait(job, timeout_s=PATIENCE_S)
        assert (result.state, producer.status(job).attempts) == ("succeeded", 2)
        assert "hangs: killed" in log.read_text()
        assert main.poll() is None


def test_a_stopping_worker_does_not_wait_for_a_process_that_hangs(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    log = tmp_path / "worker"
    urls = database_url, redis_url
    with Producer(*urls) as producer, worker(log, urls) as main:
        owner = begun(producer, producer.submit(question(options={"rollouts": 40}))).lease_owner
        assert owner is not None
        os.kill(int(owner.rpartition(":")[2]), signal.SIGSTOP)
        main.terminate()
        main.wait(2 * ENDS_S + 5)
    assert "killing processes that do not stop" in log.read_text()


def test_schedulers_and_open_producers_leave_a_migrated_database(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    log = tmp_path / "scheduler"
    urls = database_url, redis_url
    with (
        Producer(*urls) as producer,
        process(log, ["marco_search.cli.main", "scheduler"], *urls) as scheduler,
    ):
        wait_until(lambda: "scheduler: started" in log.read_text(), "it runs", PATIENCE_S)
        job = producer.submit(question())
        with producer._database.transaction() as conn:
            conn.execute("UPDATE alembic_version SET version_num = '9999'")
        assert scheduler.wait(PATIENCE_S) == SchemaMismatch.exit_code
        with pytest.raises(SchemaMismatch):
            producer.submit(question())
        with pytest.raises(SchemaMismatch):
            producer.cancel(job)
    assert "9999" in log.read_text()
    assert "Traceback" not in log.read_text()
