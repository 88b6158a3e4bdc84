"""Celery as most use it, to compare with: late acknowledgement, one message at a time.

A task notes its number and the time in a Redis list. The broker is that of REDIS_URL.
"""

from __future__ import annotations

import os
import sys
import time
from functools import cache
from typing import Any

from celery import Celery
from redis import Redis

QUEUE, DONE = "plain", "plain:done"


def _config() -> dict[str, Any]:
    return {
        "broker_url": os.environ["REDIS_URL"],
        "task_default_queue": QUEUE,
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_prefetch_multiplier": 1,
        "task_ignore_result": True,
        "broker_connection_retry_on_startup": True,
    }


app = Celery("plain")
app.add_defaults(_config)


@cache
def _client() -> Redis:
    return Redis.from_url(os.environ["REDIS_URL"])


def _note(number: int) -> None:
    _client().rpush(DONE, f"{number} {time.time()}")


note = app.task(name="plain.note")(_note)


def worker_command(name: str, processes: int) -> list[str]:
    """The command of a worker."""
    words = ["--concurrency", str(processes), "--hostname", f"{name}@%h", "--loglevel", "ERROR"]
    quiet = ["--without-gossip", "--without-mingle"]
    return [sys.executable, "-m", "celery", "-q", "-A", __name__, "worker", *words, *quiet]
