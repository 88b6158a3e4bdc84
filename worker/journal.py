"""The journal of a search whose rounds go to Postgres, under a lease."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from marco_search.engine import StoredRounds
from marco_search.errors import DatabaseUnavailable
from marco_search.search.budgets import StopReason
from marco_search.search.tree import Round
from marco_search.store.db import Conn, Database
from marco_search.store.trail import trail, vocabulary
from marco_search.store.trail.vocabulary import Written
from worker.heartbeat import Heartbeat

log = logging.getLogger(__name__)

T = TypeVar("T")


class PostgresJournal:
    """A journal of the job that `heartbeat` has the lease of.

    `model` is its name and revision; `seconds` is the time that earlier attempts searched;
    `written` has the texts of tokens that this process need not write again; `retry_s` is the
    pause between tries while Postgres is unavailable.
    """

    def __init__(
        self,
        database: Database,
        heartbeat: Heartbeat,
        *,
        model: tuple[str, str],
        seconds: float,
        written: Written | None = None,
        retry_s: float = 0.5,
    ) -> None:
        self._database = database
        self._heartbeat = heartbeat
        self._job_id = heartbeat.lease.job_id
        self._model = model
        self._before_s = seconds
        self._written = written or Written()
        self._retry_s = retry_s
        self._began = time.monotonic()

    def load(self) -> StoredRounds:
        """The rounds that earlier attempts committed."""
        self._began = time.monotonic()
        nodes, rollouts = self.retry_while_unavailable(lambda conn: trail.load(conn, self._job_id))
        return StoredRounds(nodes=nodes, rollouts=rollouts, seconds=self._before_s)

    def append(self, kept: Round, texts: Mapping[int, str]) -> None:
        """Commit one round. Raises LeaseLost if another worker holds the job."""
        seconds = self.seconds
        missing = self._written.missing(*self._model, texts)

        def write(conn: Conn) -> bool:
            stop = trail.append(conn, self._heartbeat.lease, kept, seconds=seconds)
            vocabulary.write(conn, *self._model, missing)
            return stop

        stop = self.retry_while_unavailable(write)
        self._written.add(*self._model, missing)
        if stop:
            self._heartbeat.signals = replace(self._heartbeat.signals, cancelled=True)

    def retry_while_unavailable(self, step: Callable[[Conn], T]) -> T:
        """Run `step` in a transaction, again and again while Postgres is unavailable.

        A round costs more to generate than it costs to wait. Raises LeaseLost, and
        DatabaseUnavailable if the search should be aborted meanwhile.
        """
        waits = False
        while True:
            self._heartbeat.check()
            try:
                with self._database.transaction() as conn:
                    return step(conn)
            except DatabaseUnavailable as error:
                if self._heartbeat.should_abort:
                    raise
                if not waits:
                    log.warning("job %s waits: %s", self._job_id, error)
                waits = True
                time.sleep(self._retry_s)

    def should_stop(self) -> StopReason | None:
        """A reason to stop, if there is one (see `Heartbeat.reason`). Raises LeaseLost."""
        self._heartbeat.check()
        return self._heartbeat.reason()

    @property
    def seconds(self) -> float:
        """Seconds searched so far, over all attempts."""
        return self._before_s + time.monotonic() - self._began
