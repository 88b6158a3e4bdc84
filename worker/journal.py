"""The journal of a search whose rounds go to Postgres, under a lease."""

from __future__ import annotations

import logging
import time

from marco_search.driver import Trail
from marco_search.errors import DatabaseUnavailable
from marco_search.search.mcts import Round, StopReason
from marco_search.store import trail
from marco_search.store.connect import Database
from worker.lease import Heartbeat

log = logging.getLogger(__name__)

_WAIT_S = 0.5


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
        with self._database.transaction() as conn:
            nodes, rollouts = trail.load(conn, self._job_id)
        return Trail(nodes=nodes, rollouts=rollouts, seconds=self._before_s)

    def append(self, kept: Round) -> None:
        """Commit one round. Raises LeaseLost if another worker holds the job.

        While Postgres is away this waits for it, as long as the lease lasts: the round cost
        more to generate than it costs to wait.
        """
        seconds = self._before_s + time.monotonic() - self._began
        while True:
            self._heartbeat.check()
            try:
                with self._database.transaction() as conn:
                    if trail.append(conn, self._heartbeat.lease, kept, seconds=seconds):
                        self._heartbeat.cancel_requested = True
                return
            except DatabaseUnavailable as error:
                log.warning("job %s: round %d waits: %s", self._job_id, kept.number, error)
                time.sleep(_WAIT_S)

    def should_stop(self) -> StopReason | None:
        """CANCELLED if the job was asked to stop. Raises LeaseLost."""
        self._heartbeat.check()
        return StopReason.CANCELLED if self._heartbeat.cancel_requested else None
