"""The journal of a claimed job: its rounds go to Postgres, and its lease is kept meanwhile."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from threading import Lock, Thread
from typing import NamedTuple, TypeVar

from marco_search import logs, metrics
from marco_search.engine import Journal
from marco_search.errors import DatabaseUnavailable, LeaseLost
from marco_search.search.budgets import StopReason
from marco_search.search.tree import Round, Tree
from marco_search.store.db import Conn, Database
from marco_search.store.queue import leases
from marco_search.store.queue.leases import JobSignals, Lease
from marco_search.store.trail import trail, vocabulary
from worker import watchdog
from worker.shutdown import Shutdown

log = logging.getLogger(__name__)

POLL_S = 1.0
"""Interval for noticing a cancel, a pause, a deadline or a lost lease."""
PULSE_S = 0.2
"""Interval for noticing a shutdown of this worker, which needs no query."""

T = TypeVar("T")
Read = Callable[[Conn, Lease], JobSignals]


class _Unstored(NamedTuple):
    """A round, the token texts to write with it, and the seconds searched so far."""

    kept: Round
    texts: Mapping[int, str]
    seconds: float


class Pulse:
    """A thread that calls something every `every_s` seconds, for one job after another.

    It is reused, since starting a thread takes longer than most statements. It ends after
    `idle_s` without a job.
    """

    def __init__(self, every_s: float, idle_s: float = 5.0) -> None:
        self._every_s = every_s
        self._idle_s = idle_s
        self._lock = Lock()  # held while `_beat` runs
        self._beat: Callable[[], None] | None = None
        self._runs = False

    @contextmanager
    def of(self, beat: Callable[[], None]) -> Iterator[None]:
        """Have `beat` called during the block, in its context, and never afterwards."""
        with self._lock:
            if not self._runs:
                Thread(target=self._run, name="marco-pulse", daemon=True).start()
            self._runs = True
            self._beat = partial(copy_context().run, beat)
        try:
            yield
        finally:
            with self._lock:
                self._beat = None

    def _run(self) -> None:
        last = time.monotonic()
        while True:
            time.sleep(self._every_s)
            with self._lock:
                if self._beat is not None:
                    last = time.monotonic()
                    try:
                        self._beat()
                    except Exception:
                        log.exception("a heartbeat failed")
                elif time.monotonic() - last > self._idle_s:
                    self._runs = False
                    return


class LeasedJournal(Journal):
    """`beat`, to be called often, extends the lease every `every_s` and polls for signals.

    `model` is its name and revision; `begun`: rounds are stored already; `seconds` is the time
    that earlier attempts searched; `known_tokens` has the ids of the model's tokens whose texts
    this process has stored; `retry_s` is the pause between tries while Postgres is unavailable.
    `on_abort` is called at every beat once the work in flight is useless: the job was cancelled or
    has expired, the lease is lost, or the worker's time to shut down is over.
    """

    def __init__(
        self,
        database: Database,
        lease: Lease,
        *,
        every_s: float,
        model: tuple[str, str] = ("", ""),
        begun: bool = True,
        seconds: float = 0.0,
        shutdown: Shutdown | None = None,
        on_abort: Callable[[], None] = lambda: None,
        known_tokens: set[int] | None = None,
        retry_s: float = 0.5,
        extend: Read = leases.heartbeat,
        poll: Read = leases.poll,
    ) -> None:
        self.lease = lease
        self.signals = JobSignals()
        self._database = database
        self._every_s = every_s
        self._model = model
        self._begun = begun
        self._before_s = seconds
        self._began = time.monotonic()
        self._shutdown = shutdown or Shutdown()
        self._on_abort = on_abort
        self._known_tokens = set() if known_tokens is None else known_tokens
        self._retry_s = retry_s
        self._extend, self._poll = extend, poll
        self._unstored: _Unstored | None = None
        self._written: _Unstored | None = None  # in the transaction that is open
        self._lost = False
        self._failing = False
        self._poll_s = min(POLL_S, every_s)
        self._poll_at = self._began + self._poll_s
        self._extend_at = self._began + every_s

    # -- engine.Journal -------------------------------------------------------------------

    def load(self) -> tuple[Tree, float]:
        """The rounds that earlier attempts committed."""
        self._began = time.monotonic()
        if not self._begun:
            return Tree(), self._before_s

        def read(conn: Conn) -> Tree:
            nodes, rollouts = trail.load(conn, self.lease.job_id)
            texts = vocabulary.read(conn, *self._model, nodes)
            return Tree.restore(nodes, rollouts, texts)

        return self.retry_while_unavailable(read), self._before_s

    def append(self, kept: Round, texts: Mapping[int, str], *, last: bool) -> None:
        """Commit one round. Raises LeaseLost if another worker holds the job.

        The `last` one is left to `write_unstored`, in the transaction that ends the job, which
        saves a commit.
        """
        missing = {i: texts[i] for i in texts.keys() - self._known_tokens}
        self._unstored = _Unstored(kept, missing, self.seconds)
        if not last:
            try:
                self.retry_while_unavailable(self.write_unstored)
            finally:
                self._unstored = None

    def write_unstored(self, conn: Conn) -> bool | None:
        """Write the last round, if not stored yet; True if the job is cancelled, None if stored.

        Called within `retry_while_unavailable`, which counts it as stored after the commit.
        """
        self._written = self._unstored
        if self._written is None:
            return None
        kept, texts, seconds = self._written
        cancelled = trail.append(conn, self.lease, kept, seconds=seconds)
        vocabulary.write(conn, *self._model, texts)
        if cancelled:
            self.signals = replace(self.signals, cancelled=True)
        return cancelled

    def should_stop(self) -> StopReason | None:
        """Why the search should end before its next round, if it should. Raises LeaseLost."""
        if self._lost:
            raise leases.lost(self.lease)
        if self.signals.cancelled:
            return StopReason.CANCELLED
        if self.signals.expired:
            return StopReason.DEADLINE
        if self.signals.paused or self._shutdown.seconds_left is not None:
            return StopReason.RELEASED
        return None

    # -------------------------------------------------------------------------------------

    @property
    def seconds(self) -> float:
        """Seconds searched so far, over all attempts."""
        return self._before_s + time.monotonic() - self._began

    def retry_while_unavailable(self, step: Callable[[Conn], T]) -> T:
        """Run `step` in a transaction; retry while Postgres is unavailable.

        Waiting is cheaper than generating a round again. Raises LeaseLost, and
        DatabaseUnavailable if the search should be aborted meanwhile.
        """
        waits = False
        while True:
            if self._lost:
                raise leases.lost(self.lease)
            self._written = None
            try:
                found = self._database.call(step)
                self._stored()
                return found
            except DatabaseUnavailable as error:
                if self._should_abort():
                    raise
                if not waits:
                    log.warning("job %s waits: %s", self.lease.job_id, error)
                waits = True
                time.sleep(self._retry_s)

    def _stored(self) -> None:
        """Count what was written in the transaction just committed."""
        if self._written is not None:
            kept, texts, _ = self._written
            _count(kept)
            logs.now_about(round=kept.number)
            self._known_tokens.update(texts)
            self._unstored = None

    def _should_abort(self) -> bool:
        """True if storing a round is not worth waiting for."""
        useless = self._lost or self.signals.cancelled or self.signals.expired
        return useless or self._shutdown.seconds_left == 0.0

    def beat(self) -> None:
        """Extend the lease, and check whether the search should end. Raises nothing."""
        watchdog.progress()
        if time.monotonic() >= self._poll_at and not self._lost:
            extends = time.monotonic() >= self._extend_at
            # A failed extension is retried at the next poll.
            if self._read(self._extend if extends else self._poll) and extends:
                self._extend_at = time.monotonic() + self._every_s
            self._poll_at = time.monotonic() + self._poll_s
        if self._should_abort():
            # At every beat: a round may just have been about to begin.
            try:
                self._on_abort()
            except Exception:
                log.exception("job %s: aborting its round failed", self.lease.job_id)

    def _read(self, read: Read) -> bool:
        """Read the job's signals; False if Postgres does not respond."""
        try:
            self.signals = self._database.call(read, self.lease)
        except LeaseLost:
            self._lost = True
        except Exception as error:
            # Any error: without this thread a cancel or a lost lease would go unnoticed.
            # The search continues: whether another worker has the job will be seen when Postgres
            # is back, and until then no round can be stored.
            if not self._failing:
                bug = None if isinstance(error, DatabaseUnavailable) else error
                log.warning("job %s: no heartbeat: %s", self.lease.job_id, error, exc_info=bug)
            self._failing = True
            return False
        self._failing = False
        return True


def _count(kept: Round) -> None:
    metrics.record(metrics.ROUNDS)
    metrics.record(metrics.NODES, len(kept.nodes))
    for rollout in kept.rollouts:
        metrics.record(metrics.ROLLOUTS, 1, rollout.finish)
        metrics.record(metrics.BRANCH, rollout.seconds)
        metrics.record(metrics.GENERATED, rollout.generated_tokens, rollout.finish)
        metrics.record(metrics.PROMPT, rollout.prompt_tokens)
        metrics.record(metrics.CACHED, rollout.cached_tokens)
