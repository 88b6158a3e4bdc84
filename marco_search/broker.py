"""The queue: Celery messages in Redis, each a permit to claim one job; and where Redis is.

Postgres is authoritative, including the order of jobs: a message names the job it was published
for, but the worker that receives it claims whichever job is next. A lost message is published
again by the scheduler, a surplus one finds nothing to do, so nothing here needs to be exact.

Publishers, workers, schedulers and the doctor connect with what `parse_address` returns, so that
all of them check the same certificate. Celery and redis-py, which takes half a second, are imported
when they are needed: most commands only want the address.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from uuid import UUID

from marco_search.deadlines import KEEPALIVE
from marco_search.errors import BrokerUnavailable, InvalidSettings
from marco_search.forks import start_over_in_child
from marco_search.settings import is_host, without_password

if TYPE_CHECKING:
    from redis import Redis

TASK = "marco.run_job"
T = TypeVar("T")

_IMPORTING = Lock()
"""Importing Celery replaces its module object: a second thread could see half of it."""

PRESENT_EVERY_S = 5.0
"""How often a worker announces itself (`say_present`)."""
_PRESENT_FOR_S = 15

# A server that vanished without closing is noticed within ten seconds: by a command that is
# not answered, or by the blocking wait for a message, which Redis ends once a second.
_ANSWER_S = 5
PAUSE_S = 1.0
"""Seconds after a failure of Redis in which a publisher leaves publishing to a scheduler."""
_HEALTH_CHECK_S = 4

_FORM = (
    "write redis://:password@host:port/0 (rediss:// for TLS), with the characters /?#@:% of a "
    "password as %2F %3F %23 %40 %3A %25"
)
_TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs",
                "ssl_check_hostname")  # fmt: skip
_REQUIREMENTS = ("required", "optional", "none")
_FLAGS = {"true": True, "false": False}


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """The address of Redis. `tls`: the options of redis-py's SSLConnection, or None."""

    url: str  #: with the login, without the options of TLS
    tls: dict[str, Any] | None

    def client(self, **options: Any) -> Redis:
        """A client of redis-py with these options. Connects when first used."""
        from redis import Redis

        return Redis.from_url(self.url, **(self.tls or {}), **options)


def parse_address(url: str) -> RedisAddress:
    """The parts of `url`. Raises InvalidSettings; the message holds nothing of the URL."""
    try:
        url.encode()  # bytes of the environment that are not UTF-8
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise _refused("not a Redis URL") from None
    if parts.scheme not in ("redis", "rediss"):
        raise _refused("must look like redis://... or rediss://...")
    # The rest of a password after an unescaped / ? or # is parsed here.
    if not host or port == 0 or not is_host(unquote(host)):
        raise _refused("no usable host and port")
    if "@" in parts.path + parts.query + parts.fragment or parts.fragment:
        raise _refused("not a Redis URL")
    host = unquote(host)
    host = f"[{host}]" if ":" in host else host
    user, password = (quote(unquote(part or ""), "") for part in (parts.username, parts.password))
    login = f"{user}:{password}@" if user or password else ""
    url = f"{parts.scheme}://{login}{host}:{port or 6379}/{_database(parts.path)}"
    return RedisAddress(url, _tls(parts.scheme, parts.query))


def _database(path: str) -> int:
    number = path.removeprefix("/").removesuffix("/") or "0"
    if not (number.isascii() and number.isdigit() and len(number) < 6):
        raise _refused("the path must be a database number, as in host:6379/0")
    return int(number)


def _tls(scheme: str, query: str) -> dict[str, Any] | None:
    given = parse_qsl(query, keep_blank_values=True)
    if any(name not in _TLS_OPTIONS for name, _ in given) or (given and scheme != "rediss"):
        raise _refused(f"only rediss:// accepts options, and only {', '.join(_TLS_OPTIONS)}")
    if scheme != "rediss":
        return None
    options: dict[str, Any] = {"ssl_cert_reqs": "required", **dict(given)}
    options["ssl_cert_reqs"] = options["ssl_cert_reqs"].lower().removeprefix("cert_")
    if options["ssl_cert_reqs"] not in _REQUIREMENTS:
        raise _refused(f"ssl_cert_reqs must be one of {', '.join(_REQUIREMENTS)}")
    checks = str(options.get("ssl_check_hostname", "true")).lower()
    if checks not in _FLAGS:
        raise _refused("ssl_check_hostname must be true or false")
    return options | {"ssl_check_hostname": _FLAGS[checks]}


def _refused(why: str) -> InvalidSettings:
    return InvalidSettings(f"REDIS_URL: {why}; {_FORM}")


def celery_config(redis_url: str, queue: str) -> dict[str, Any]:
    """The settings that publishers and workers must share. Raises InvalidSettings."""
    address = parse_address(redis_url)
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
            "socket_keepalive_options": KEEPALIVE,
            "health_check_interval": _HEALTH_CHECK_S,
        },
        "task_default_queue": queue,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "task_store_errors_even_if_ignored": False,
    }


def say_present(client: Redis, queue: str, name: str) -> None:
    """Record in Redis that the worker `name` takes messages. Raises RedisError."""
    now = client.time()[0]
    with client.pipeline() as pipe:
        pipe.zadd(_workers(queue), {name: now})
        pipe.zremrangebyscore(_workers(queue), "-inf", now - 10 * _PRESENT_FOR_S)
        pipe.execute()


def present(client: Redis, queue: str) -> list[str]:
    """Names of the workers that announced themselves recently. Raises RedisError."""
    since = int(client.time()[0]) - _PRESENT_FOR_S
    found: Any = client.zrange(_workers(queue), since, "+inf", byscore=True)
    return sorted(name.decode(errors="replace") for name in found)


def _workers(queue: str) -> str:
    return f"{queue}:workers"


class Publisher:
    """Puts job ids into the queue. Thread-safe; a forked process opens its own connection.

    Raises InvalidSettings for a URL that can't be used; connects when first needed.
    """

    def __init__(self, redis_url: str, queue: str) -> None:
        config = celery_config(redis_url, queue)
        # One quick retry, instead of minutes by default: the row is safe in Postgres.
        config["broker_transport_options"] |= {
            "max_retries": 1,
            "interval_start": 0.1,
            "interval_max": 0.1,
        }
        with _IMPORTING:
            from celery import Celery

        self._app = Celery("marco", set_as_current=False, changes=config)
        self._shown = without_password(redis_url)
        self._queue = queue
        self.start_over()
        start_over_in_child(self)

    def start_over(self) -> None:
        """Begin without a connection."""
        self._lock = Lock()
        self._connection: Any = None
        self._failed_at, self._failure = -PAUSE_S, ""

    def publish(self, job_ids: Sequence[UUID]) -> None:
        """Send a message for each job, in as few round trips as possible.

        Raises BrokerUnavailable; some may have been sent then, which does no harm.
        """

        def send(connection: Any) -> None:
            with connection.Producer(auto_declare=False) as producer, producer.batch():
                for job_id in map(str, job_ids):
                    self._app.send_task(
                        TASK, [job_id], task_id=job_id, producer=producer, retry=False,
                        ignore_result=True,
                    )  # fmt: skip

        self._with_reconnect(send)

    def length(self) -> int:
        """Messages in the queue. Raises BrokerUnavailable."""
        return self._ask(lambda client: int(client.llen(self._queue)))

    def workers(self) -> list[str]:
        """Names of the workers that announced themselves recently. Raises BrokerUnavailable."""
        return self._ask(lambda client: present(client, self._queue))

    def try_acquire_tick(self, every_s: float) -> bool:
        """True for one of all callers within `every_s` seconds. Raises BrokerUnavailable."""
        # It expires by itself, also if the process that acquired it dies.
        key, expires_ms = f"{self._queue}:sweep", int(every_s * 1000)
        return self._ask(lambda client: bool(client.set(key, 1, nx=True, px=expires_ms)))

    def close(self) -> None:
        """Drop the connection. The next use opens another."""
        with self._lock:
            self._drop()

    def _ask(self, question: Callable[[Any], T]) -> T:
        """The result of `question` on a Redis client."""

        def step(connection: Any) -> T:
            with connection.default_channel.conn_or_acquire() as client:
                return question(client)

        return self._with_reconnect(step)

    def _with_reconnect(self, step: Callable[[Any], T]) -> T:
        """`step`, repeated once on a new connection if the kept one is broken."""
        from kombu.exceptions import KombuError
        from redis.exceptions import RedisError

        failures = (KombuError, RedisError, OSError)
        with self._lock:
            if monotonic() - self._failed_at < PAUSE_S:  # of those that waited none need try again
                raise BrokerUnavailable(self._failure)
            while True:
                kept = self._connection is not None
                try:
                    if not kept:
                        self._connection = self._app.connection_for_write()
                    return step(self._connection)
                except failures as error:
                    self._drop()
                    if not kept:
                        self._failed_at = monotonic()
                        self._failure = (
                            f"{self._shown}: {error}; check that Redis is running and REDIS_URL "
                            "is right (marco doctor)"
                        )
                        raise BrokerUnavailable(self._failure) from error

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.release()
