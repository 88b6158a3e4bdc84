"""A search that must end is cut short in the middle of a round, not only after it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import uuid4

import pytest

from marco_search.errors import LeaseLost
from marco_search.search.budgets import StopReason
from marco_search.store.queue.leases import JobSignals, Lease
from worker.journal import LeasedJournal, Pulse


class NoDatabase:
    """Stands where a database would."""

    def call(self, step: Callable[..., Any], /, *given: Any) -> Any:
        return step(None, *given)


@pytest.mark.parametrize("lost", [False, True])
def test_what_is_in_flight_is_aborted(lost: bool) -> None:
    lease = Lease(job_id=uuid4(), generation=1, seconds=60)

    def beat(conn: Any, held: Lease) -> JobSignals:
        if lost:
            raise LeaseLost("another worker has it")
        return JobSignals(cancelled=True)

    aborted = threading.Semaphore(0)
    journal = LeasedJournal(
        NoDatabase(),  # type: ignore[arg-type]
        lease,
        every_s=0.01,
        on_abort=aborted.release,
        extend=beat,
        poll=beat,
    )
    with Pulse(0.01).of(journal.beat):
        for _ in range(3):  # again at every beat
            assert aborted.acquire(timeout=30)
        if lost:
            with pytest.raises(LeaseLost):
                journal.should_stop()
        else:
            assert journal.should_stop() is StopReason.CANCELLED


def test_no_error_ends_the_heartbeat() -> None:
    """After an unexpected one a cancel is still noticed; one in `on_abort` changes nothing."""
    lease, asked, ended = (
        Lease(job_id=uuid4(), generation=1, seconds=60),
        [],
        threading.Semaphore(0),
    )

    def beat(conn: Any, held: Lease) -> JobSignals:
        asked.append(held)
        if len(asked) == 1:
            raise RuntimeError("what is this?")
        return JobSignals(cancelled=True)

    def on_abort() -> None:
        ended.release()
        raise RuntimeError("and this?")

    journal = LeasedJournal(
        NoDatabase(),  # type: ignore[arg-type]
        lease,
        every_s=0.01,
        on_abort=on_abort,
        extend=beat,
        poll=beat,
    )
    with Pulse(0.01).of(journal.beat):
        for _ in range(3):
            assert ended.acquire(timeout=30)


def test_one_thread_beats_for_the_jobs_of_a_process_and_for_none_that_has_ended() -> None:
    pulse, beats, threads = Pulse(0.001), threading.Semaphore(0), set()
    over: list[int] = []
    late: list[int] = []

    def beat(number: int) -> None:
        late.extend({number} & {*over})
        threads.add(threading.get_ident())
        beats.release()

    for number in range(20):
        with pulse.of(partial(beat, number)):
            assert beats.acquire(timeout=30)
        over.append(number)
    assert (len(threads), late) == (1, [])


def test_the_thread_ends_without_a_job_and_is_started_again() -> None:
    pulse, beats = Pulse(0.001, idle_s=0.0), threading.Semaphore(0)
    threads = []
    for _ in range(2):
        with pulse.of(lambda: threads.append(threading.current_thread()) or beats.release()):
            assert beats.acquire(timeout=30)
        threads[-1].join(30)
        assert not threads[-1].is_alive()
