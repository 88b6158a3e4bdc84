"""Tells the broker again what it was not told, or has forgotten.

Every worker sweeps, so nothing waits for ever when Redis was down at submit, lost its
memory, or a worker died with a job. Sweeps that run at once leave each other's rows alone.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from threading import Event, Thread

from marco_search.broker import Publisher
from marco_search.errors import MarcoError
from marco_search.store import outbox, partitions
from marco_search.store.connect import Database

log = logging.getLogger(__name__)

EVERY_S = 2.0
PARTITIONS_EVERY_S = 3600.0
FORGOTTEN_AFTER_S = 30.0
"""A job published this long ago whose queue is empty will not be delivered any more."""


def sweep(database: Database, publisher: Publisher) -> int:
    """One sweep; the number of jobs published.

    Raises DatabaseUnavailable or BrokerUnavailable; then nothing is marked as published.
    """
    published = 0
    with database.transaction() as conn:
        messages = outbox.due(conn)
        if messages:
            publisher.publish(messages)
            outbox.mark_published(conn, messages)
            published += len(messages)
    with database.transaction() as conn:
        if not outbox.any_waiting(conn, FORGOTTEN_AFTER_S):
            return published
        empty = [priority for priority, length in publisher.lengths().items() if length == 0]
        messages = outbox.forgotten(conn, empty, FORGOTTEN_AFTER_S)
        if messages:
            log.warning("%d jobs were published but their messages are gone", len(messages))
            publisher.publish(messages)
            outbox.mark_published(conn, messages)
    return published + len(messages)


def ensure_partitions(database: Database) -> None:
    """Make the trail's next months, long before they begin. Raises DatabaseUnavailable."""
    with database.transaction() as conn:
        made = partitions.ensure(conn)
    if made:
        log.info("made partitions: %s", ", ".join(made))


class Sweeper:
    """A thread that sweeps every few seconds. `connect` is called in it, once."""

    def __init__(self, connect: Callable[[], tuple[Database, Publisher]]) -> None:
        self._connect = connect
        self._stop = Event()
        self._thread = Thread(target=self._run, name="marco-sweep", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, and wait for the sweep in progress."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        database, publisher = self._connect()
        try:
            # Spread, so that workers started together do not sweep together.
            next_month_look = time.monotonic()
            while not self._stop.wait(EVERY_S * random.uniform(0.5, 1.5)):
                try:
                    if time.monotonic() >= next_month_look:
                        next_month_look += PARTITIONS_EVERY_S
                        ensure_partitions(database)
                    sweep(database, publisher)
                except MarcoError as error:
                    log.warning("sweep: %s", error)
                except Exception:
                    # A worker that no longer sweeps would go unnoticed.
                    log.exception("sweep")
        finally:
            publisher.close()
            database.close()
