"""Waiting for jobs to end, and why some make no progress.

One connection listens for all waits of a producer.

Postgres notifies with the commit that ends a job. Notifications are lost while the connection is
down, so every wait also reads all its jobs after a reconnect, and every two seconds.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from threading import Event, Lock, Thread
from uuid import UUID

import psycopg

from marco_search.broker import parse_address, present
from marco_search.errors import MarcoError, WaitTimeout
from marco_search.forks import start_over_in_child
from marco_search.locations import redis_url
from marco_search.settings import Settings
from marco_search.store.db import Database, is_pooled
from marco_search.store.queue.states import CHANNEL
from marco_search.store.reads.queries import Unfinished
from producer.handles import check_seconds

log = logging.getLogger(__name__)

POLL_S = 2.0
"""A wait reads all its jobs this often, in case a notification was lost."""
_WAKE_S = 0.25  # how long closing may take; no query is sent
_CHECK_S = 5.0  # after this much silence, check that the server is still there
_RECONNECT_S = 1.0
_POLLING = "no notifications of finished jobs, polling every few seconds"
_LOOK_S = 1.5  # between checks for why nothing progresses
_ANSWER_S = 2.0  # that Redis has


class Listener:
    """A thread that starts with the first subscriber and ends with `close`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._subscribers: list[tuple[deque[UUID | None], Callable[[], object]]] = []
        self._closings = 0
        self.start_over()
        start_over_in_child(self)

    def start_over(self) -> None:
        """Begin without a thread: a forked process does not have its parent's."""
        self._lock = Lock()
        self._stop = Event()
        self._thread: Thread | None = None

    @contextmanager
    def subscribed(self, wake: Callable[[], object]) -> Iterator[Callable[[], list[UUID | None]]]:
        """Yields a function that takes the notices so far: ids of jobs that ended inside the block,
        and None for "read all of yours". `wake` is called from another thread after each.
        The function raises WaitTimeout once `close` has been called.
        """
        notices: deque[UUID | None] = deque()
        subscriber = notices, wake
        with self._lock:
            self._subscribers.append(subscriber)
            closings = self._closings
            if self._thread is None:
                self._stop = Event()  # the previous thread may not have seen its own
                self._thread = Thread(
                    target=self._run, args=[self._stop], name="marco-listener", daemon=True
                )
                self._thread.start()

        def take() -> list[UUID | None]:
            if self._closings > closings:
                raise WaitTimeout("the producer was closed while it waited; the jobs continue")
            return [notices.popleft() for _ in range(len(notices))]

        try:
            yield take
        finally:
            with self._lock:
                self._subscribers.remove(subscriber)

    def close(self) -> None:
        """End the thread and all waits."""
        with self._lock:
            thread, self._thread = self._thread, None
            self._stop.set()
            self._closings += 1
        self._notify(None)
        if thread is not None:
            thread.join()

    def _run(self, stop: Event) -> None:
        while not stop.is_set():
            try:
                self._listen(stop)
            except (MarcoError, psycopg.Error) as error:
                log.warning("%s: %s", _POLLING, error)
            except Exception:
                # Any error: without this thread all further results would be late.
                log.exception(_POLLING)
            stop.wait(_RECONNECT_S)

    def _listen(self, stop: Event) -> None:
        with self._database.connect() as conn:
            if is_pooled(conn):
                log.info("%s: a pooler does not forward NOTIFY", _POLLING)
                conn.close()
                stop.wait()
                return
            conn.execute(f"LISTEN {CHANNEL}")
            self._notify(None)
            heard = time.monotonic()
            while not stop.is_set():
                for notice in conn.notifies(timeout=_WAKE_S):
                    heard = time.monotonic()
                    try:
                        self._notify(UUID(notice.payload))
                    except ValueError:
                        continue  # anyone may send to the channel
                if time.monotonic() - heard > _CHECK_S:  # a vanished server is just silent
                    conn.execute("SELECT")
                    heard = time.monotonic()

    def _notify(self, job_id: UUID | None) -> None:
        with self._lock:
            subscribers = list(self._subscribers)
        for notices, wake in subscribers:
            notices.append(job_id)
            wake()


class Pending:
    """The unfinished jobs of one wait: which to read next, and until when.

    `to_read` are those to read now. Raises TypeError for an invalid timeout.
    """

    def __init__(
        self,
        job_ids: Iterable[UUID],
        timeout_s: float | None,
        poll_s: float = POLL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if timeout_s is not None:
            check_seconds("timeout_s", timeout_s)
        self.ids = dict.fromkeys(job_ids)  # an ordered set
        self.to_read = list(self.ids)
        self._count = len(self.ids)
        self._timeout_s = timeout_s
        self._clock = clock
        longest = threading.TIMEOUT_MAX
        self._deadline = clock() + (longest if timeout_s is None else min(timeout_s, longest))
        self._poll_s = min(poll_s, longest)
        self._poll_at = clock() + self._poll_s

    @contextmanager
    def seldom(self) -> Iterator[None]:
        """The block reads jobs, which gets at most a tenth of the time, however many there are."""
        began = self._clock()
        yield
        self._poll_s = max(self._poll_s, 10 * (self._clock() - began))

    def done(self, job_id: UUID) -> None:
        """Note that this job has ended."""
        self.ids.pop(job_id, None)

    def patience(self) -> float:
        """Seconds to wait for a notification. Raises WaitTimeout at the deadline."""
        now = self._clock()
        if now >= self._deadline:
            raise WaitTimeout(
                f"{len(self.ids)} of {self._count} jobs had not ended after {self._timeout_s:g} s; "
                "they continue"
            )
        return max(0.0, min(self._poll_at, self._deadline) - now)

    def notified(self, job_ids: Iterable[UUID | None]) -> None:
        """Choose what to read next from the listener's notices."""
        ended = set(job_ids)
        if None in ended or self._clock() >= self._poll_at:
            self.to_read = list(self.ids)
            self._poll_at = self._clock() + self._poll_s
        else:
            self.to_read = [job_id for job_id in ended if job_id in self.ids]


def reasons(waiting: Unfinished, settings: Settings) -> dict[str, str]:
    """A sentence by reason why these jobs make no progress: "paused", "no_model", "no_worker"."""
    found = {}
    if waiting.pause:
        found["paused"] = (
            f"paused: {waiting.pause:,} queued; `marco pause --list` says what is paused, "
            "`marco resume` resumes it"
        )
    if waiting.model:
        found["no_model"] = (
            f"{waiting.model:,} started on a model that no worker has: `marco status` says which"
        )
    if waiting.worker and workers(settings) == []:
        found["no_worker"] = "no worker responds: run `marco worker`"
    return found


def workers(settings: Settings) -> list[str] | None:
    """The workers that announced themselves lately; None: unknown, a reader may have no Redis."""
    from redis.exceptions import RedisError

    try:
        address = parse_address(redis_url(settings))
        options = {"socket_timeout": _ANSWER_S, "socket_connect_timeout": _ANSWER_S, "retry": None}
        with address.client(**options) as client:
            return present(client, settings.queue)
    except (MarcoError, RedisError):
        return None


class Watch:
    """Logs each reason once as a warning when two checks in a row have found it.

    One check is not enough: a worker may be starting, or Redis.
    """

    def __init__(self) -> None:
        self._look_at = time.monotonic() + _LOOK_S
        self._seen: Mapping[str, str] = {}
        self._said: set[str] = set()

    def look(self, find: Callable[[], Mapping[str, str]]) -> None:
        """Check for reasons why the jobs make no progress, if it is time to."""
        began = time.monotonic()
        if began < self._look_at:
            return
        found = find()
        for reason, sentence in found.items():
            if reason in self._seen and reason not in self._said:
                self._said.add(reason)
                log.warning("%s", sentence)
        self._seen = found
        now = time.monotonic()
        self._look_at = now + max(_LOOK_S, 3 * (now - began))
