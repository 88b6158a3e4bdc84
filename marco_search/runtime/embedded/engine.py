"""The decoding thread: continuous batching behind a queue.

One daemon thread, started by the first request, admits what waits before every step and
decodes all rows in flight together. Callers wait on their own row, which is a future. Whatever
goes wrong in the thread reaches every caller as its exception.
"""

from __future__ import annotations

import threading
from collections import deque

import numpy as np

from marco_search.errors import BranchFailed
from marco_search.forks import start_over_in_child
from marco_search.runtime.embedded.batch import Batch, GenerationRequest, Row
from marco_search.runtime.embedded.linear import one_blas_thread

_CLOSED = "the embedded engine is closed"


class Engine:
    """Serves requests from one batch. All methods may be called from any thread.

    In a forked child (a Celery prefork worker) it starts over, empty, with its own thread.
    """

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._closed = False
        self.start_over()
        start_over_in_child(self)

    def start_over(self) -> None:
        """Begin empty. In a forked child the parent's thread and requests are not there."""
        self._wake = threading.Condition()  # the parent may have held the old one
        self._unfinished: set[Row] = set()
        self._waiting: deque[Row] = deque()
        self._thread: threading.Thread | None = None
        self._batch.rows = []
        self._batch.cache.clear()

    def submit(self, request: GenerationRequest) -> Row:
        """Queue a request; it fails at once if it can't be served. Wait for the row's result."""
        row = Row(request)
        refusal = self._batch.refusal(request)
        if refusal is not None:
            row.fail(refusal, BranchFailed)
            return row
        with self._wake:
            if self._closed:
                row.fail(_CLOSED)
                return row
            if self._thread is None:
                thread = threading.Thread(
                    target=self._run, name="marco-embedded-engine", daemon=True
                )
                thread.start()  # where the machine has no more threads, the next request tries
                self._thread = thread
            self._unfinished.add(row)
            row.add_done_callback(self._unfinished.discard)
            self._waiting.append(row)
            self._wake.notify()
        return row

    def abort(self) -> None:
        """Fail everything that waits or is in flight now. What is submitted later is served."""
        self._fail_unfinished("the branch was aborted")

    def close(self) -> None:
        """Fail what is in flight, end the thread and wait for it. May be called twice."""
        with self._wake:
            self._closed = True
            self._wake.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _fail_unfinished(self, message: str) -> None:
        with self._wake:
            unfinished = list(self._unfinished)
        for row in unfinished:
            row.fail(message)

    def _run(self) -> None:
        failure = _CLOSED
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
            self._fail_unfinished(failure)

    def _await_work(self) -> bool:
        """Wait until there is something to do. False when the engine is to end."""
        with self._wake:
            self._wake.wait_for(lambda: self._waiting or self._closed)
            return not self._closed

    def _turn(self) -> bool:
        """Do one step. False when there is nothing more to do, or the engine is to end."""
        batch = self._batch
        with self._wake:
            if self._closed or not (self._waiting or batch.rows):
                return False
            arrived = batch.take(self._waiting)
        try:
            batch.drop_done()
            if arrived:
                batch.admit(arrived)
            if batch.rows:
                batch.step()
        except Exception as error:  # of any kind: the callers get it, the engine keeps running
            failure = _failure(error)
            batch.fail_all(failure)
            for row in arrived:
                row.fail(failure)
        return True


def _failure(error: BaseException) -> str:
    return f"the embedded engine failed: {type(error).__name__}: {error}"
