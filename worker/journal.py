"""The journal of a search whose rounds go to Postgres, under a lease."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from marco_search.driver import Trail
from marco_search.errors import DatabaseUnavailable
from marco_search.search.mcts import Round, StopReason
from marco_search.store import trail
from marco_search.store.connect import Conn, Database
from worker.lease import Heartbeat

log = logging.getLogger(__name__)

_WAIT_S = 0.5

T = TypeVar("T")


class PostgresJournal:
    """A `driver.Journal`. `seconds` is the time that earlier attempts searched."""

    def __init__(self, database: Database, heartbeat: Heartbeat, *, seconds: float) -> None:
        self._database = database
        self._heartbeat = heartbeat
        self._job_id = heartbeat.lease.job_id
        self._before_s = seconds
        self._began = time.monotonic()

    def load(self) -> Trail:
        """The rounds that earlier attempts committed."""
        self._began = time.monotonic()
        nodes, rollouts = self.patiently(lambda conn: trail.load(conn, self._job_id))
        return Trail(nodes=nodes, rollouts=rollouts, seconds=self._before_s)

    def append(self, kept: Round) -> None:
        """Commit one round. Raises LeaseLost if another worker holds the job."""
        seconds = self.seconds

        def write(conn: Conn) -> bool:
            return trail.append(conn, self._heartbeat.lease, kept, seconds=seconds)

        if self.patiently(write):
            self._heartbeat.watch = replace(self._heartbeat.watch, cancelled=True)

    def patiently(self, step: Callable[[Conn], T]) -> T:
        """Run `step` in a transaction, again and again while Postgres is away.

        A round costs more to generate than it costs to wait. Raises LeaseLost, and
        DatabaseUnavailable if the worker must leave meanwhile.
        """
        away = False
        while True:
            self._heartbeat.check()
            try:
                with self._database.transaction() as conn:
                    return step(conn)
            except DatabaseUnavailable as error:
                if self._heartbeat.in_vain:
                    raise
                if not away:
                    log.warning("job %s waits: %s", self._job_id, error)
                away = True
                time.sleep(_WAIT_S)

    def should_stop(self) -> StopReason | None:
        """A reason to stop, if there is one (see `Heartbeat.reason`). Raises LeaseLost."""
        self._heartbeat.check()
        return self._heartbeat.reason()

    @property
    def seconds(self) -> float:
        """Seconds searched so far, over all attempts."""
        return self._before_s + time.monotonic() - self._began
