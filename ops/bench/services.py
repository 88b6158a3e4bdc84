"""How long the embedded services take to start, to come back after kill -9, and to stop."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
from redis import Redis, RedisError

from marco_search import local_state
from marco_search.local import down, up
from marco_search.local.layout import Layout


def measure() -> dict[str, float]:
    """Seconds for each, once, in a new home."""
    with tempfile.TemporaryDirectory(prefix="marco-bench-") as folder:
        Path(folder).chmod(0o711)
        home = Path(folder, "home")
        result = {"first_up_s": _seconds(lambda: up(home))}
        result["down_s"] = _seconds(lambda: down(home))
        result["second_up_s"] = _seconds(lambda: up(home))
        urls = up(home)
        state = local_state.read(home)
        if state is None or state.postgres is None or state.redis is None:
            raise AssertionError("both run")
        os.kill(state.postgres.pid, signal.SIGKILL)
        result["postgres_back_s"] = _seconds(lambda: _until_row(urls.database_url))
        os.kill(state.redis.pid, signal.SIGKILL)
        result["redis_back_s"] = _seconds(lambda: _until_pong(urls.redis_url))
        down(home)
        Layout(home).purge()
    return result


def _seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _until_row(url: str) -> None:
    while True:
        try:
            with psycopg.connect(url, connect_timeout=2) as session:
                session.execute("SELECT 1")
                return
        except psycopg.OperationalError:
            time.sleep(0.01)


def _until_pong(url: str) -> None:
    with Redis.from_url(url) as client:
        while True:
            try:
                client.ping()
                return
            except RedisError:
                time.sleep(0.01)
