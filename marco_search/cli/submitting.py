"""Handing jobs over: the terms that the command line adds, and waiting for room."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from marco_search.errors import Backpressure

if TYPE_CHECKING:
    from marco_search.jobs import Job
    from producer import JobHandle, Producer

_TERMS = ("priority", "deadline", "expires_in_s")
_DEADLINES = {"deadline", "expires_in_s"}


def with_terms(job: Job, values: dict[str, Any]) -> Job:
    """The job with priority and deadline of `values` where it says nothing. Raises InvalidJob."""
    given = {name: values[name] for name in _TERMS if values.get(name) is not None}
    if job.model_fields_set & _DEADLINES:
        given = {name: value for name, value in given.items() if name not in _DEADLINES}
    own = {name: getattr(job, name) for name in job.model_fields_set}
    return type(job).model_validate({**given, **own}) if given else job


def submitted(
    producer: Producer,
    jobs: Sequence[Job],
    *,
    wait: bool,
    sleep: Callable[[float], None] = time.sleep,
) -> list[JobHandle]:
    """Submit all of the jobs or none. With `wait` again and again while too much is queued.

    Raises QueueFull or QuotaExceeded without `wait`, or if they can never fit.
    """
    told = False
    while True:
        try:
            return producer.submit_many(jobs)
        except Backpressure as error:
            if not wait or error.retry_after_s is None:
                raise
            if not told:
                print(f"marco: {error}; waiting", file=sys.stderr)
                told = True
            sleep(error.retry_after_s)
