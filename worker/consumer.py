"""Celery's consumer and its connection to Redis, made to outlast what goes wrong there.

- an error that Redis answers with (out of memory, read only, a wrong type, a failover) is like
  a lost connection: said once in a while, tried again after a growing pause
- a message that can't be read is logged and dropped
"""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from typing import Any

from celery.worker.consumer import Consumer as CeleryConsumer
from celery.worker.state import maybe_shutdown
from kombu.transport import TRANSPORT_ALIASES, redis
from redis import Redis, RedisError

from marco_search.broker import PRESENT_EVERY_S, say_present
from worker import messages

log = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_CALM_S = 30.0  # without trouble: then the pauses begin anew
_SAY_AGAIN_S = 60.0  # of the same trouble
_QUOTED = 200  # bytes of a message that are logged


class Troubles:
    """When to try again, and whether to say what was wrong."""

    def __init__(self) -> None:
        self._pause_s = 0.0
        self._last = -_CALM_S
        self._said: dict[str, float] = {}

    def pause_s(self) -> float:
        """Seconds to wait now."""
        now = time.monotonic()
        calm = now - self._last > _CALM_S
        grown = min(max(2 * self._pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
        self._pause_s = _FIRST_PAUSE_S if calm else grown
        self._last = now + self._pause_s
        return self._pause_s

    def say(self, error: BaseException) -> None:
        """Log it, unless its kind was logged a moment ago."""
        now, kind = time.monotonic(), type(error).__name__
        if now - self._said.get(kind, -_SAY_AGAIN_S) >= _SAY_AGAIN_S:
            self._said[kind] = now
            log.warning("Redis: %s: %s; trying again", kind, error)

    def over(self) -> None:
        """Redis does what it is asked to. Logged once after a trouble."""
        if self._said and time.monotonic() - self._last > 2 * _LONGEST_PAUSE_S:
            self._said.clear()
            log.info("Redis: well again")


class Consumer(CeleryConsumer):  # type: ignore[misc]
    """See above."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._troubles = Troubles()
        self.channel_errors: tuple[type[Exception], ...] = (
            *self.conninfo.channel_errors,
            RedisError,
        )

    def ensure_connected(self, conn: Any) -> Any:
        """Connect, however long it takes."""
        return conn.ensure_connection(
            lambda error, _: self._troubles.say(error),
            interval_start=_FIRST_PAUSE_S,
            interval_step=1.0,
            interval_max=_LONGEST_PAUSE_S,
            callback=maybe_shutdown,
        )

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        """Redis refused the first command."""
        self._pause(exc)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """The connection was lost, or Redis refused a command. What runs goes on."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what Celery 6 will do
            super().on_connection_error_after_connected(exc)
        self._pause(exc)

    def on_close(self) -> None:
        """Forget what was taken from the old connection, but not which processes are busy.

        Celery forgets that too, and then a message may wait for a process in the middle of a
        job while others are free.
        """
        pool = getattr(self.pool, "_pool", None)
        busy = set(getattr(pool, "_busy_workers", ()))
        super().on_close()
        if busy and pool is not None:
            pool._busy_workers.update(busy & {child.inqW_fd for child in pool._pool})

    def _pause(self, error: Exception) -> None:
        self._troubles.say(error)
        until = time.monotonic() + self._troubles.pause_s()
        while time.monotonic() < until:
            maybe_shutdown()
            time.sleep(_FIRST_PAUSE_S)

    def register_with_event_loop(self, hub: Any) -> None:
        """Also say in Redis that this worker is there, as long as the loop turns."""
        super().register_with_event_loop(hub)
        hub.call_repeatedly(PRESENT_EVERY_S, self._say_present)
        self._say_present()

    def _say_present(self) -> None:
        try:
            with self.connection.default_channel.conn_or_acquire() as client:
                say_present(client, self.app.conf.task_default_queue, self.hostname)
        except (RedisError, OSError) as error:
            log.debug("not said that this worker is there: %s", error)
        else:
            self._troubles.over()


class Client(Redis):
    """Takes nothing off the queue but permits."""

    def parse_response(self, connection: Any, command_name: Any, **options: Any) -> Any:
        """As redis-py's; a message that can't be read is as if none had come."""
        found: Any = super().parse_response(connection, command_name, **options)  # type: ignore[no-untyped-call]
        if command_name != "BRPOP" or not found:
            return found
        key, raw = found
        try:
            return key, messages.made(messages.read(raw), key.partition(b"\x06")[0].decode())
        except ValueError as error:
            log.error("dropped a message that can't be read: %s: %a", error, raw[:_QUOTED])
            return None


class Channel(redis.Channel):
    """Kombu's, with that client."""

    def _get_client(self) -> type[Redis]:
        return Client

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """As Kombu's; a message that was taken from a connection that is gone is forgotten."""
        with contextlib.suppress(KeyError):
            super().basic_reject(delivery_tag, requeue=requeue)  # type: ignore[no-untyped-call]

    def _restore(self, message: Any, leftmost: bool = False) -> None:
        try:
            super()._restore(message, leftmost)  # type: ignore[no-untyped-call]
        except (RedisError, OSError) as error:
            # Kombu would write it to a file of its own. The row is published again.
            log.debug("a message is not given back: %s", error)


class Transport(redis.Transport):
    """Kombu's, with that channel."""

    Channel = Channel


def install() -> None:
    """Let this process's Celery reach Redis through `Transport`."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:Transport"
    # Celery's own words on each lost connection: a traceback and a notice.
    logging.getLogger(CeleryConsumer.__module__).addFilter(
        lambda record: record.funcName != "on_connection_error_after_connected"
    )
    logging.getLogger("celery.worker.consumer.connection").setLevel(logging.WARNING)
