"""Hears which jobs have ended, on one connection for all who wait.

Postgres tells (NOTIFY) with the commit that ends a job. What it told while the connection
was down is lost, so everybody is also told to look for themselves after each reconnect.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Lock, Thread
from uuid import UUID

import psycopg

from marco_search.errors import MarcoError
from marco_search.store.db import Database, is_pooled
from marco_search.store.queue.states import CHANNEL

log = logging.getLogger(__name__)

Tell = Callable[[UUID | None], object]
"""Called with the id of a job that ended, or with None: look at all of yours."""

_WAKE_S = 0.25  # how long closing may take; nothing is asked of the database
_ASK_S = 5.0  # after this much silence: whether the server is still there
_RECONNECT_S = 1.0


class Listener:
    """A thread that starts with the first subscriber and ends with `close`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._subscribers: set[Tell] = set()
        self._lock = Lock()
        self._stop = Event()
        self._thread: Thread | None = None

    @contextmanager
    def subscribed(self, tell: Tell) -> Iterator[None]:
        """`tell` is called, from another thread, for every job that ends inside the block."""
        with self._lock:
            self._subscribers.add(tell)
            if self._thread is None:
                self._stop.clear()
                self._thread = Thread(target=self._run, name="marco-listener", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                self._subscribers.discard(tell)

    def close(self) -> None:
        """End the thread."""
        with self._lock:
            thread, self._thread = self._thread, None
            self._stop.set()
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._listen()
            except (MarcoError, psycopg.Error) as error:
                log.warning("not hearing of finished jobs, looking every few seconds: %s", error)
            except Exception:
                # Whatever it is: without this thread results would come late from now on.
                log.exception("not hearing of finished jobs, looking every few seconds")
            self._stop.wait(_RECONNECT_S)

    def _listen(self) -> None:
        with self._database.connect() as conn:
            if is_pooled(conn):
                log.info("a pooler passes no NOTIFY on: looking every few seconds")
                conn.close()
                self._stop.wait()
                return
            conn.execute(f"LISTEN {CHANNEL}")
            self._tell(None)
            heard = time.monotonic()
            while not self._stop.is_set():
                for notice in conn.notifies(timeout=_WAKE_S):
                    heard = time.monotonic()
                    self._hear(notice.payload)
                if time.monotonic() - heard > _ASK_S:  # of a server that is gone nothing is heard
                    conn.execute("SELECT")
                    heard = time.monotonic()

    def _hear(self, payload: str) -> None:
        try:
            job_id = UUID(payload)
        except ValueError:
            return  # anybody may send to the channel
        self._tell(job_id)

    def _tell(self, job_id: UUID | None) -> None:
        with self._lock:
            subscribers = list(self._subscribers)
        for tell in subscribers:
            tell(job_id)
