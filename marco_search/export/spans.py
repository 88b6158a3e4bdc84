"""A stored search as an OpenTelemetry trace: job, attempts, rounds, branches.

Names are those of OpenInference (Phoenix reads them) and of the GenAI conventions (Langfuse
does). The trace's id is the job's, and a span's id follows from its place, so exporting
twice gives the same trace. Times are those of the log: a round ends when it was written, a
branch began as long before as it took.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from openinference.semconv.trace import (
    MessageAttributes,
    OpenInferenceSpanKindValues,
    SpanAttributes,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from marco_search import __version__
from marco_search.export.searches import AttemptRow, StoredSearch
from marco_search.search.branches import Finish
from marco_search.search.tree import Rollout

# Of the GenAI conventions, whose Python constants are still called incubating.
_OPERATION = "gen_ai.operation.name"
_REQUEST_MODEL = "gen_ai.request.model"
_INPUT_TOKENS = "gen_ai.usage.input_tokens"
_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
_CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
_FINISH_REASONS = "gen_ai.response.finish_reasons"
_SEED = "gen_ai.request.seed"
_TEMPERATURE = "gen_ai.request.temperature"
_MAX_TOKENS = "gen_ai.request.max_tokens"

_RESOURCE = Resource({"service.name": "marco-search", "service.version": __version__})
_SCOPE = InstrumentationScope("marco_search", __version__)
_CHAIN, _LLM = OpenInferenceSpanKindValues.CHAIN.value, OpenInferenceSpanKindValues.LLM.value


class _Tracer:
    """Makes the spans of one search."""

    def __init__(self, search: StoredSearch, text: bool) -> None:
        self.search = search
        self.text = text
        self._trace_id = search.job.id.int

    def span(
        self, place: str, parent: str | None, name: str, start: int, end: int,
        attributes: dict[str, Any], error: str | None = None,
    ) -> ReadableSpan:  # fmt: skip
        """A span. `place` names it within the trace; times are nanoseconds since 1970."""
        return ReadableSpan(
            name=name,
            context=self._context(place),
            parent=None if parent is None else self._context(parent),
            resource=_RESOURCE,
            attributes={k: v for k, v in attributes.items() if _known(v)},
            kind=SpanKind.CLIENT if attributes[_KIND] == _LLM else SpanKind.INTERNAL,
            status=Status(StatusCode.OK) if error is None else Status(StatusCode.ERROR, error),
            start_time=min(start, end),
            end_time=end,
            instrumentation_scope=_SCOPE,
        )

    def _context(self, place: str) -> SpanContext:
        digest = hashlib.sha256(f"{self._trace_id:032x} {place}".encode()).digest()
        span_id = int.from_bytes(digest[:8], "big") or 1
        return SpanContext(self._trace_id, span_id, is_remote=False, trace_flags=TraceFlags(1))

    def shown(self, text: str | None) -> str | None:
        """Text that people or the model wrote, if it may be shown."""
        return text if self.text else None


_KIND = SpanAttributes.OPENINFERENCE_SPAN_KIND


def spans(search: StoredSearch, *, text: bool = True) -> Iterator[ReadableSpan]:
    """The trace of one job, parents before children. Without `text` nothing written is in it."""
    tracer = _Tracer(search, text)
    job = search.job
    times = [*(e.at for e in search.events), *(a.started_at for a in search.attempts)]
    end = job.finished_at or max(times, default=job.created_at)
    yield tracer.span(
        "job", None, f"marco {job.kind}", _ns(job.created_at), _ns(end),
        {
            _KIND: _CHAIN,
            SpanAttributes.INPUT_VALUE: tracer.shown(job.subject),
            SpanAttributes.OUTPUT_VALUE: tracer.shown(job.answer),
            SpanAttributes.SESSION_ID: job.batch_id and str(job.batch_id),
            SpanAttributes.USER_ID: job.tenant,
            "marco.job_id": str(job.id),
            "marco.state": job.state,
            "marco.strategy": job.config and job.config["strategy"],
            "marco.stop_reason": job.stop_reason,
            "marco.confidence": job.confidence,
            "marco.correct": job.correct,
            "marco.generated_tokens": job.generated_tokens,
        },
        _error(job.error, text) if job.state in ("failed", "dead", "expired") else None,
    )  # fmt: skip
    for attempt in search.attempts:
        yield from _attempt(tracer, attempt, _ns(end))


def _attempt(tracer: _Tracer, attempt: AttemptRow, job_end: int) -> Iterator[ReadableSpan]:
    place = f"attempt {attempt.generation}"
    events = [e for e in tracer.search.events if e.generation == attempt.generation]
    start = _ns(attempt.started_at)
    end = max([start, *(_ns(e.at) for e in events)]) if events else min(start, job_end)
    yield tracer.span(
        place, "job", place, start, end,
        {
            _KIND: _CHAIN,
            "marco.worker": attempt.worker,
            "marco.runtime": f"{attempt.runtime} {attempt.runtime_version}",
            "marco.model_revision": attempt.revision,
            SpanAttributes.LLM_MODEL_NAME: attempt.model,
        },
    )  # fmt: skip
    before = start
    for event in events:
        if event.event == "round" and event.round is not None:
            yield from _round(tracer, attempt, event.round, before, _ns(event.at))
            before = _ns(event.at)


def _round(
    tracer: _Tracer, attempt: AttemptRow, number: int, start: int, end: int
) -> Iterator[ReadableSpan]:
    place = f"round {number}"
    rollouts = [r for r in tracer.search.rollouts if r.round == number]
    attributes = {_KIND: _CHAIN, "marco.round": number, "marco.branches": len(rollouts)}
    yield tracer.span(place, f"attempt {attempt.generation}", place, start, end, attributes)
    for rollout in rollouts:
        yield _branch(tracer, attempt, rollout, place, start, end)


def _branch(
    tracer: _Tracer, attempt: AttemptRow, rollout: Rollout, parent: str, start: int, end: int
) -> ReadableSpan:
    tree, config = tracer.search.tree, tracer.search.job.config or {}
    at = rollout.path.index(rollout.start_id) + 1
    prompt = tracer.search.prompt + "".join(tree.nodes[i].text for i in rollout.path[:at])
    written = "".join(tree.nodes[i].text for i in rollout.path[at:])
    given = {
        "seed": rollout.seed,
        "temperature": config.get("temperature"),
        "top_p": config.get("top_p"),
        "max_tokens": config.get("max_new_tokens"),
    }
    failed = rollout.finish is Finish.FAILED
    place = f"rollout {rollout.rollout_id}"
    return tracer.span(
        place, parent, place, max(start, end - _long(rollout.seconds)), end,
        {
            _KIND: _LLM,
            SpanAttributes.LLM_MODEL_NAME: attempt.model,
            SpanAttributes.LLM_INVOCATION_PARAMETERS: json.dumps(given),
            SpanAttributes.INPUT_VALUE: tracer.shown(prompt),
            SpanAttributes.OUTPUT_VALUE: tracer.shown(written),
            **_message(SpanAttributes.LLM_INPUT_MESSAGES, "user", tracer.shown(prompt)),
            **_message(SpanAttributes.LLM_OUTPUT_MESSAGES, "assistant", tracer.shown(written)),
            SpanAttributes.LLM_TOKEN_COUNT_PROMPT: rollout.prompt_tokens,
            SpanAttributes.LLM_TOKEN_COUNT_COMPLETION: rollout.generated_tokens,
            SpanAttributes.LLM_TOKEN_COUNT_TOTAL: rollout.prompt_tokens + rollout.generated_tokens,
            SpanAttributes.LLM_TOKEN_COUNT_PROMPT_DETAILS_CACHE_READ: rollout.cached_tokens,
            _OPERATION: "text_completion",
            _REQUEST_MODEL: attempt.model,
            _INPUT_TOKENS: rollout.prompt_tokens,
            _OUTPUT_TOKENS: rollout.generated_tokens,
            _CACHED_TOKENS: rollout.cached_tokens,
            _FINISH_REASONS: [str(rollout.finish)],
            _SEED: rollout.seed,
            _TEMPERATURE: config.get("temperature"),
            _MAX_TOKENS: config.get("max_new_tokens"),
            "marco.confidence": rollout.confidence,
            "marco.path_confidence": rollout.path_confidence,
            "marco.value": rollout.value,
            "marco.answer": tracer.shown(rollout.answer),
            "marco.start_node": rollout.start_id,
            "marco.path": list(rollout.path),
            "marco.reflect": str(rollout.reflect),
        },
        _error(rollout.error, tracer.text) if failed else None,
    )  # fmt: skip


def _message(list_name: str, role: str, content: str | None) -> dict[str, str]:
    """The first message of an OpenInference list; none without content."""
    if content is None:
        return {}
    first = f"{list_name}.0."
    return {
        first + MessageAttributes.MESSAGE_ROLE: role,
        first + MessageAttributes.MESSAGE_CONTENT: content,
    }


def _known(value: object) -> bool:
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


def _long(seconds: float) -> int:
    """Nanoseconds; 0 for what is no length of time."""
    return round(seconds * 1e9) if math.isfinite(seconds) else 0


def _error(message: str | None, text: bool) -> str:
    return (message if text else None) or "failed"


def _ns(at: datetime) -> int:
    """Nanoseconds since 1970; a float of seconds would lose some."""
    return round(at.timestamp() * 1e6) * 1000
