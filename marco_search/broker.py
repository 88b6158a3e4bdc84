"""The queue: Celery messages in Redis that say "look at job X" and nothing else.

Postgres is the truth. A message that is lost is published again by a sweep, one that comes
twice finds nothing to do, so nothing here needs to be exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any

from celery import Celery
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from marco_search.errors import BrokerUnavailable
from marco_search.settings import without_password
from marco_search.store.outbox import Message
from marco_search.store.states import PRIORITIES

TASK = "marco.run_job"

_STEPS = sorted(PRIORITIES.values())
# Between a queue's name and its priority in the names of Redis lists: marco, marco:3, marco:6.
_SEPARATOR = ":"
# A message that a worker took and did not acknowledge comes again after this. Longer than
# the lease on purpose: lost workers are found by their lease, in seconds, and by then this
# message finds nothing to do. A job that runs longer gets it twice and shrugs.
_VISIBILITY_TIMEOUT_S = 3600


def celery_config(redis_url: str, queue: str) -> dict[str, Any]:
    """The settings that publishers and workers must share."""
    return {
        "broker_url": redis_url,
        "broker_transport_options": {
            "priority_steps": _STEPS,
            "queue_order_strategy": "priority",
            "sep": _SEPARATOR,
            "visibility_timeout": _VISIBILITY_TIMEOUT_S,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
        },
        "task_default_queue": queue,
        "task_default_priority": PRIORITIES["normal"],
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "task_store_errors_even_if_ignored": False,
    }


class Publisher:
    """Puts job ids into the queue. Safe for threads, not across a fork."""

    def __init__(self, redis_url: str, queue: str) -> None:
        config = celery_config(redis_url, queue)
        # One quick second try, instead of the default of minutes: the row waits safely.
        config["broker_transport_options"] |= {
            "socket_timeout": 5,
            "max_retries": 1,
            "interval_start": 0.1,
            "interval_max": 0.1,
        }
        self._app = Celery("marco", set_as_current=False, changes=config)
        self._shown = without_password(redis_url)
        self._queue = queue
        self._lock = Lock()
        self._connection: Any = None

    def publish(self, messages: Sequence[Message]) -> None:
        """Send all messages in as few round trips as there are.

        Raises BrokerUnavailable; some may have been sent then, which does no harm.
        """
        with self._lock:
            self._twice(self._send, messages)

    def lengths(self) -> dict[int, int]:
        """Messages in the queue by priority. Raises BrokerUnavailable."""
        with self._lock:
            counted: dict[int, int] = self._twice(self._count)
            return counted

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

    def _send(self, connection: Any, messages: Sequence[Message]) -> None:
        with connection.Producer(auto_declare=False) as producer, producer.batch():
            for message in messages:
                job_id = str(message.job_id)
                self._app.send_task(
                    TASK,
                    args=[job_id],
                    task_id=job_id,
                    priority=message.priority,
                    producer=producer,
                    retry=False,
                    ignore_result=True,
                )

    def _count(self, connection: Any) -> dict[int, int]:
        with connection.default_channel.conn_or_acquire() as client:
            pipe = client.pipeline(transaction=False)
            for step in _STEPS:
                pipe.llen(f"{self._queue}{_SEPARATOR}{step}" if step else self._queue)
            return dict(zip(_STEPS, pipe.execute(), strict=True))
