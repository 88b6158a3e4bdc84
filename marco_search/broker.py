"""The queue: Celery messages in Redis, each a permit to claim one job.

Postgres is the truth, also about whose turn it is: a message names the job it was published
for, but whoever takes it claims the job that is next (store.line). A message that is lost is
published again by a sweep, one too many finds nothing to do, so nothing here needs to be exact.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from threading import Lock
from typing import Any
from uuid import UUID

from celery import Celery
from kombu.exceptions import KombuError
from redis import Redis
from redis.exceptions import RedisError

from marco_search import redis_address
from marco_search.errors import BrokerUnavailable
from marco_search.settings import without_password

TASK = "marco.run_job"

PRESENT_EVERY_S = 5.0
"""A worker says this often that it is there (`say_present`)."""
_PRESENT_FOR_S = 15

# A server that vanished without a word is noticed within ten seconds: a command that is not
# answered, and the long wait for the next message, which Redis ends once a second.
_ANSWER_S = 5
_HEALTH_CHECK_S = 4
# The same for packets that nobody acknowledges (TCP_USER_TIMEOUT in milliseconds).
_KEEPALIVE = {
    getattr(socket, name): value
    for name, value in (
        ("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 8000),
    )
    if hasattr(socket, name)
}  # fmt: skip


def celery_config(redis_url: str, queue: str) -> dict[str, Any]:
    """The settings that publishers and workers must share. Raises InvalidSettings."""
    address = redis_address.parse(redis_url)
    return {
        "broker_url": address.url,
        "broker_use_ssl": address.tls,
        "broker_transport_options": {
            # A message is a permit that can be lost: no copy of those that a worker holds is
            # kept in Redis. Rows whose message is gone are published again.
            "ack_emulation": False,
            "socket_timeout": _ANSWER_S,
            "socket_connect_timeout": _ANSWER_S,
            "socket_keepalive": True,
            "socket_keepalive_options": _KEEPALIVE,
            "health_check_interval": _HEALTH_CHECK_S,
        },
        "task_default_queue": queue,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "task_store_errors_even_if_ignored": False,
    }


def say_present(client: Redis, queue: str, name: str) -> None:
    """Note in Redis that the worker `name` takes messages. Raises RedisError."""
    now = client.time()[0]
    with client.pipeline() as pipe:
        pipe.zadd(_workers(queue), {name: now})
        pipe.zremrangebyscore(_workers(queue), "-inf", now - 10 * _PRESENT_FOR_S)
        pipe.execute()


def _workers(queue: str) -> str:
    return f"{queue}:workers"


class Publisher:
    """Puts job ids into the queue. Safe for threads, not across a fork.

    Raises InvalidSettings for a URL that can't be used; connects when first needed.
    """

    def __init__(self, redis_url: str, queue: str) -> None:
        config = celery_config(redis_url, queue)
        # One quick second try, instead of the default of minutes: the row waits safely.
        config["broker_transport_options"] |= {
            "max_retries": 1,
            "interval_start": 0.1,
            "interval_max": 0.1,
        }
        self._app = Celery("marco", set_as_current=False, changes=config)
        self._shown = without_password(redis_url)
        self._queue = queue
        self._lock = Lock()
        self._connection: Any = None

    def publish(self, job_ids: Sequence[UUID]) -> None:
        """Send a message for each job in as few round trips as there are.

        Raises BrokerUnavailable; some may have been sent then, which does no harm.
        """
        with self._lock:
            self._twice(self._send, job_ids)

    def length(self) -> int:
        """Messages in the queue. Raises BrokerUnavailable."""
        with self._lock:
            counted: int = self._twice(self._count)
            return counted

    def workers(self) -> list[str]:
        """Names of the workers that have just said they are there. Raises BrokerUnavailable."""
        with self._lock:
            names: list[str] = self._twice(self._present)
            return names

    def may_sweep(self, every_s: float) -> bool:
        """True for one of all that ask within `every_s` seconds. Raises BrokerUnavailable."""
        with self._lock:
            return bool(self._twice(self._take_turn, every_s))

    def close(self) -> None:
        """Drop the connection. The next use opens another."""
        with self._lock:
            self._drop()

    def _twice(self, step: Any, *arguments: Any) -> Any:
        """`step`, and once more on a new connection if the one that was kept is broken."""
        kept = self._connection is not None
        try:
            try:
                return step(self._connected(), *arguments)
            except (KombuError, RedisError, OSError):
                self._drop()
                if not kept:
                    raise
                return step(self._connected(), *arguments)
        except (KombuError, RedisError, OSError) as error:
            self._drop()
            raise BrokerUnavailable(
                f"{self._shown}: {error}; see that Redis runs and REDIS_URL is right (marco doctor)"
            ) from error

    def _connected(self) -> Any:
        if self._connection is None:
            self._connection = self._app.connection_for_write()
        return self._connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.release()

    def _send(self, connection: Any, job_ids: Sequence[UUID]) -> None:
        with connection.Producer(auto_declare=False) as producer, producer.batch():
            for job_id in job_ids:
                self._app.send_task(
                    TASK,
                    args=[str(job_id)],
                    task_id=str(job_id),
                    producer=producer,
                    retry=False,
                    ignore_result=True,
                )

    def _count(self, connection: Any) -> Any:
        with connection.default_channel.conn_or_acquire() as client:
            return client.llen(self._queue)

    def _present(self, connection: Any) -> list[str]:
        with connection.default_channel.conn_or_acquire() as client:
            now = client.time()[0]
            names = client.zrange(_workers(self._queue), now - _PRESENT_FOR_S, "+inf", byscore=True)
            return sorted(name.decode(errors="replace") for name in names)

    def _take_turn(self, connection: Any, every_s: float) -> Any:
        # Gone by itself, also when whoever took the turn dies in it.
        with connection.default_channel.conn_or_acquire() as client:
            return client.set(f"{self._queue}:sweep", 1, nx=True, px=int(every_s * 1000))
