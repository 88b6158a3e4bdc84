"""W3C trace context: from the submitter of a job, through its row, to the servers that generate.

A job is part of its caller's trace; one that was submitted outside of any has its own trace,
whose id is the job's. Span ids are derived from what they stand for, so that spans recorded by a
server while a job runs become children of those that `marco export` creates later.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from uuid import UUID

REQUESTS: ContextVar[str | None] = ContextVar("REQUESTS", default=None)
"""The traceparent header of requests to model servers."""


def current() -> str | None:
    """The traceparent of the current OpenTelemetry span of this thread or task, if any."""
    # A caller within a span has already imported it; others need not wait for the import.
    if "opentelemetry.trace" not in sys.modules:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent")


@contextmanager
def within(traceparent: str | None) -> Iterator[str | None]:
    """During the block this task is part of that trace; its id. None if it can't be read."""
    if traceparent is None:
        yield None
        return
    from opentelemetry import context, trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    there = TraceContextTextMapPropagator().extract({"traceparent": traceparent})
    caller = trace.get_current_span(there).get_span_context()
    token = context.attach(there)
    try:
        yield f"{caller.trace_id:032x}" if caller.is_valid else None
    finally:
        context.detach(token)


def trace_id(job_id: UUID, caller: str | None) -> int:
    """The id of a job's trace; `caller` is the traceparent that it was submitted in."""
    return int(caller.split("-")[1], 16) if caller else job_id.int


def span_id(job_id: UUID, place: str) -> int:
    """The id of the span of a job that `place` names, such as "attempt 1"."""
    digest = hashlib.sha256(f"{job_id.int:032x} {place}".encode()).digest()
    return int.from_bytes(digest[:8], "big") or 1


def traceparent(job_id: UUID, caller: str | None, place: str) -> str:
    """The header of a request that is part of that span; sampled, unless the caller is not."""
    flags = caller.split("-")[3] if caller else "01"
    return f"00-{trace_id(job_id, caller):032x}-{span_id(job_id, place):016x}-{flags}"
