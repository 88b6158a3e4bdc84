"""Celery's consumer and its connection to Redis, made to survive failures of Redis.

- An error reply (out of memory, read only, wrong type, failover) is treated like a lost
  connection: logged at most once a minute, retried after a growing pause.
- A message is a permit to claim one job, and nothing else. Anyone with access to Redis can put
  anything there: another program, an older version, a person. So each message is checked as
  bytes before Celery sees it, and rebuilt from the job id in it; one that can't be read is
  logged and dropped.
"""

import contextlib
import json
import logging
import time
import warnings
from base64 import b64encode
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

from celery.worker.consumer import Consumer as CeleryConsumer
from celery.worker.state import maybe_shutdown
from kombu.transport import TRANSPORT_ALIASES, redis
from pydantic import Base64Bytes, BaseModel, Field, TypeAdapter, ValidationError
from redis import Redis, RedisError

from marco_search.broker import PRESENT_EVERY_S, TASK, say_present
from worker import process

log = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_CALM_S = 30.0  # without errors, after which the pauses start over
_REPEAT_S = 60.0  # before the same error is logged again
_LARGEST = 1 << 16  # bytes of a message; valid ones have about 700
_QUOTED = 200  # bytes of a message that are logged


class Backoff:
    """When to retry, and whether to log the error."""

    def __init__(self) -> None:
        self._pause_s = 0.0
        self._last = -_CALM_S
        self._logged: dict[str, float] = {}

    def pause_s(self) -> float:
        """Seconds to wait now."""
        now = time.monotonic()
        calm = now - self._last > _CALM_S
        grown = min(max(2 * self._pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
        self._pause_s = _FIRST_PAUSE_S if calm else grown
        self._last = now + self._pause_s
        return self._pause_s

    def log(self, error: BaseException) -> None:
        """Log the error, unless one of its kind was logged lately."""
        now, kind = time.monotonic(), type(error).__name__
        if now - self._logged.get(kind, -_REPEAT_S) >= _REPEAT_S:
            self._logged[kind] = now
            log.warning("Redis: %s: %s; retrying", kind, error)

    def over(self) -> None:
        """Note that Redis works. Logged once after an error."""
        if self._logged and time.monotonic() - self._last > 2 * _LONGEST_PAUSE_S:
            self._logged.clear()
            log.info("Redis: working again")


class Consumer(CeleryConsumer):  # type: ignore[misc]
    """Survives errors of Redis, however long they last."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._backoff = Backoff()
        self.channel_errors: tuple[type[Exception], ...] = (
            *self.conninfo.channel_errors,
            RedisError,
        )

    def ensure_connected(self, conn: Any) -> Any:
        """Connect, however long it takes."""
        return conn.ensure_connection(
            lambda error, _: self._backoff.log(error),
            interval_start=_FIRST_PAUSE_S,
            interval_step=1.0,
            interval_max=_LONGEST_PAUSE_S,
            callback=maybe_shutdown,
        )

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        """Redis refused the first command."""
        self._pause(exc)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """The connection was lost, or Redis refused a command. Running jobs continue."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the behaviour of Celery 6
            super().on_connection_error_after_connected(exc)
        self._pause(exc)

    def on_close(self) -> None:
        """Forget messages of the old connection, but not which processes are busy.

        Celery forgets that, too, and then may give a message to a process in the middle of a
        job while others are idle.
        """
        pool = getattr(self.pool, "_pool", None)
        busy = set(getattr(pool, "_busy_workers", ()))
        super().on_close()
        if busy and pool is not None:
            pool._busy_workers.update(busy & {child.inqW_fd for child in pool._pool})

    def _pause(self, error: Exception) -> None:
        self._backoff.log(error)
        until = time.monotonic() + self._backoff.pause_s()
        while time.monotonic() < until:
            maybe_shutdown()
            time.sleep(_FIRST_PAUSE_S)

    def register_with_event_loop(self, hub: Any) -> None:
        """Also announce this worker in Redis, as long as the loop runs."""
        super().register_with_event_loop(hub)
        hub.call_repeatedly(PRESENT_EVERY_S, self._say_present)
        self._say_present()

    def _say_present(self) -> None:
        try:
            with self.connection.default_channel.conn_or_acquire() as client:
                say_present(client, self.app.conf.task_default_queue, self.hostname)
            process.healthy(process.current().settings)
        except (RedisError, OSError) as error:
            log.debug("could not announce this worker: %s", error)
        else:
            self._backoff.over()


class _Headers(BaseModel):
    task: Literal["marco.run_job"]


class _Properties(BaseModel):
    body_encoding: Literal["base64"]


class _Message(BaseModel):
    headers: _Headers
    properties: _Properties
    body: Base64Bytes


_Body = TypeAdapter(tuple[Annotated[list[UUID], Field(min_length=1, max_length=1)], Any, Any])


def job_named(raw: bytes) -> UUID:
    """The job that a message names. Raises ValueError, saying why it can't be read."""
    if len(raw) > _LARGEST:
        raise ValueError(f"it has {len(raw):,} bytes")
    try:
        message = _Message.model_validate_json(raw)
        (job_id,), _, _ = _Body.validate_json(message.body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in ("message", *first["loc"][:4]))
        raise ValueError(f"{place}: {first['msg']}"[:200]) from None
    return job_id


def message_for(job_id: UUID, queue: str) -> bytes:
    """The message that Celery gets instead."""
    body = b64encode(json.dumps([[str(job_id)], {}, {}]).encode()).decode()
    delivery = {"exchange": "", "routing_key": queue}
    return json.dumps(
        {
            "body": body,
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "headers": {"task": TASK, "id": str(job_id)},
            "properties": {
                "body_encoding": "base64",
                "delivery_tag": str(uuid4()),
                "delivery_info": delivery,
            },
        }
    ).encode()


class Client(Redis):
    """Takes only valid messages off the queue."""

    def parse_response(self, connection: Any, command_name: Any, **options: Any) -> Any:
        """As redis-py's; a message that can't be read counts as none."""
        found: Any = super().parse_response(connection, command_name, **options)  # type: ignore[no-untyped-call]
        if command_name != "BRPOP" or not found:
            return found
        key, raw = found
        try:
            return key, message_for(job_named(raw), key.partition(b"\x06")[0].decode())
        except ValueError as error:
            log.error("dropped a message that can't be read: %s: %a", error, raw[:_QUOTED])
            return None


class Channel(redis.Channel):
    """Kombu's, with that client."""

    def _get_client(self) -> type[Redis]:
        return Client

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """As Kombu's; a message taken from a lost connection is forgotten."""
        with contextlib.suppress(KeyError):
            super().basic_reject(delivery_tag, requeue=requeue)  # type: ignore[no-untyped-call]

    def _restore(self, message: Any, leftmost: bool = False) -> None:
        try:
            super()._restore(message, leftmost)  # type: ignore[no-untyped-call]
        except (RedisError, OSError) as error:
            # Kombu would write it to a file of its own. The row is published again.
            log.debug("a message was not put back: %s", error)


class Transport(redis.Transport):
    """Kombu's, with that channel."""

    Channel = Channel


def install() -> None:
    """Let this process's Celery reach Redis through `Transport`."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:Transport"
    # Celery logs a traceback and a notice for each lost connection.
    logging.getLogger(CeleryConsumer.__module__).addFilter(
        lambda record: record.funcName != "on_connection_error_after_connected"
    )
    logging.getLogger("celery.worker.consumer.connection").setLevel(logging.WARNING)
