"""The decoding thread: continuous batching behind a queue.

One daemon thread, started by the first request, admits what waits before every step and
decodes all rows in flight together. Callers wait on their own ticket. Whatever goes wrong in
the thread reaches every caller as a failure value; nobody is left waiting.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque

import numpy as np

from marco_search.errors import BranchFailed, RuntimeFailure, RuntimeUnavailable
from marco_search.runtime.embedded.batch import Batch
from marco_search.runtime.embedded.blas import one_blas_thread
from marco_search.runtime.embedded.requests import Ticket

_ABORTED = "the branch was aborted"


class Engine:
    """Serves tickets from one batch. All methods may be called from any thread.

    In a forked child (a Celery prefork worker) it starts over, empty, with its own thread.
    """

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._closed = False
        self._wake = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._flush = False
        self._abort = False
        self._thread: threading.Thread | None = None
        _engines.add(self)

    def submit(self, ticket: Ticket) -> Ticket:
        """Queue a ticket and return it; it fails at once if it can't be served."""
        refusal = self._batch.refusal(ticket.request)
        if refusal is not None:
            ticket.settle(BranchFailed(refusal))
            return ticket
        with self._wake:
            if self._closed:
                ticket.settle(RuntimeUnavailable("the embedded engine is closed"))
                return ticket
            self._waiting.append(ticket)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="marco-embedded-engine", daemon=True
                )
                self._thread.start()
            self._wake.notify()
        return ticket

    def flush_cache(self) -> None:
        """Forget all cached prefixes before anything that is submitted later."""
        with self._wake:
            self._flush = True
            self._wake.notify()

    def abort(self) -> None:
        """Fail everything that waits or is in flight now. What is submitted later is served."""
        with self._wake:
            waiting = list(self._waiting)
            self._waiting.clear()
            self._abort = True
            self._wake.notify()
        for ticket in waiting:
            ticket.settle(RuntimeUnavailable(_ABORTED))

    def close(self) -> None:
        """Fail what is in flight, end the thread and wait for it. May be called twice."""
        with self._wake:
            self._closed = True
            self._wake.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def start_over(self) -> None:
        """Forget what the parent process had in flight: its thread is not in this one."""
        self._wake = threading.Condition()  # the parent may have held the old one
        self._waiting = deque()
        self._flush = False
        self._abort = False
        self._thread = None
        self._batch.rows = []
        self._batch.cache.clear()

    def _run(self) -> None:
        failure: RuntimeFailure = RuntimeUnavailable("the embedded engine was closed")
        try:
            # Masked scores and long tails of a softmax run into 0 and -inf on purpose.
            with np.errstate(all="ignore"):
                while self._await_work():
                    with one_blas_thread():
                        while self._turn():
                            pass
        except BaseException as error:
            failure = _failure(error)
            raise
        finally:
            with self._wake:
                self._closed = True
                waiting = list(self._waiting)
                self._waiting.clear()
            self._batch.fail_all(failure)
            for ticket in waiting:
                ticket.settle(failure)

    def _await_work(self) -> bool:
        """Wait until there is something to do. False when the engine is to end."""
        with self._wake:
            while not (self._has_work() or self._closed):
                self._abort = False  # nothing in flight
                self._wake.wait()
            return not self._closed

    def _has_work(self) -> bool:
        return bool(self._waiting or self._batch.rows or self._flush)

    def _turn(self) -> bool:
        """Do one step. False when there is nothing more to do, or the engine is to end."""
        batch = self._batch
        with self._wake:
            if self._closed or not self._has_work():
                return False
            arrived = batch.take(self._waiting)
            flush, self._flush = self._flush, False
            abort, self._abort = self._abort, False
        try:
            if abort:
                batch.abort(RuntimeUnavailable(_ABORTED))
            if flush:
                batch.cache.clear()
            batch.drop_cancelled()
            if arrived:
                batch.admit(arrived)
            if batch.rows:
                batch.step()
        except Exception as error:  # whatever it was, the callers get it and the engine goes on
            failure = _failure(error)
            batch.fail_all(failure)
            for ticket in arrived:
                ticket.settle(failure)
        return True


def _failure(error: BaseException) -> RuntimeFailure:
    return RuntimeUnavailable(f"the embedded engine failed: {type(error).__name__}: {error}")


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def _start_over_in_child() -> None:
    for engine in list(_engines):
        engine.start_over()


os.register_at_fork(after_in_child=_start_over_in_child)
