"""Stored searches as OpenTelemetry traces: job, attempts, rounds, branches; to a file or collector.

Names are those of OpenInference (for Phoenix) and of the GenAI conventions (for Langfuse). The
trace is that of the submitter of the job, or one whose id is the job's; a span's id follows from
its place, so exporting twice gives the same trace. Times are those of the log: a round ends when it
was written, a branch began as long before as it took.
"""

from __future__ import annotations

import base64
import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from google.protobuf.json_format import MessageToDict
from openinference.semconv.trace import (
    MessageAttributes,
    OpenInferenceSpanKindValues,
    SpanAttributes,
)
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.util.re import parse_env_headers

from marco_search import __version__, tracing
from marco_search.errors import CollectorUnavailable, InvalidSettings, SearchError
from marco_search.export.tables import Filter
from marco_search.files import write_lines
from marco_search.search.branches import Finish
from marco_search.search.budgets import round_size
from marco_search.search.config import SearchConfig, gone_from
from marco_search.search.tree import Rollout, Tree
from marco_search.settings import is_host
from marco_search.store import views
from marco_search.store.db import Conn
from marco_search.store.reads import job_record
from marco_search.store.reads.job_record import AttemptRow, JobRecord
from marco_search.store.trail import trail

_RESOURCE = Resource({"service.name": "marco-search", "service.version": __version__})
_SCOPE = InstrumentationScope("marco_search", __version__)
_CHAIN, _LLM = OpenInferenceSpanKindValues.CHAIN.value, OpenInferenceSpanKindValues.LLM.value
_KIND = SpanAttributes.OPENINFERENCE_SPAN_KIND
_IDS = ("traceId", "spanId", "parentSpanId")
_FAILURES = ("retried", "worker_lost", "failed", "dead")  # events that end an attempt
_SPANS_AT_ONCE = 200  # in one request: collectors refuse large ones
_TIMEOUT_S = 10.0


def traces(conn: Conn, chosen: Filter, *, text: bool = True) -> Iterator[list[ReadableSpan]]:
    """The traces of the jobs, in order of submission. Without `text` nothing written is in them."""
    condition, values = chosen.condition()
    query = f"SELECT j.job_id FROM audit.jobs AS j WHERE {condition} ORDER BY j.job_id"  # noqa: S608
    with conn.cursor("export_jobs") as ids:
        for (job_id,) in ids.execute(query.encode(), values):
            tree = Tree.restore(*trail.load(conn, job_id, schema=views.SCHEMA))
            yield list(_Tracer(job_record.read(conn, job_id), tree, text).spans())


class _Tracer:
    """Makes the spans of one search, parents before children."""

    def __init__(self, record: JobRecord, tree: Tree, text: bool) -> None:
        self.record, self.tree, self.text = record, tree, text
        parents = (e.detail.get("traceparent") for e in record.events if e.event == "submitted")
        self.caller = None if record.redacted else next(parents, None)  # it went with the texts
        # Prompt and configuration are the same for all attempts.
        self.prompt = next((a.prompt for a in record.attempts if a.prompt is not None), "")
        self.config = record.config
        self.asked = _known_config(self.config)

    def spans(self) -> Iterator[ReadableSpan]:
        """The job, its attempts, their rounds and branches."""
        job = self.record.job
        times = [e.at for e in self.record.events if e.generation is not None]
        times += [a.started_at for a in self.record.attempts]
        end = _ns(job.finished_at or max(times, default=job.created_at))
        yield self._span(
            "job", None, f"marco {job.kind}", _ns(job.created_at), end,
            {
                _KIND: _CHAIN,
                SpanAttributes.INPUT_VALUE: self._visible(job.subject),
                SpanAttributes.OUTPUT_VALUE: self._visible(job.answer),
                SpanAttributes.SESSION_ID: job.batch_id and str(job.batch_id),
                SpanAttributes.USER_ID: job.tenant,
                "marco.job_id": str(job.job_id),
                "marco.state": job.state,
                "marco.strategy": self.config.get("strategy"),
                "marco.stop_reason": job.stop_reason,
                "marco.confidence": job.confidence,
                "marco.correct": job.correct,
                "marco.generated_tokens": job.generated_tokens,
            },
            self._error(job.error) if job.state in ("failed", "dead", "expired") else None,
        )  # fmt: skip
        for attempt in self.record.attempts:
            yield from self._attempt(attempt, end)

    def _attempt(self, attempt: AttemptRow, job_end: int) -> Iterator[ReadableSpan]:
        place = f"attempt {attempt.generation}"
        events = [e for e in self.record.events if e.generation == attempt.generation]
        start = _ns(attempt.started_at)
        end = max([start, *(_ns(e.at) for e in events)]) if events else min(start, job_end)
        failed = next((e for e in events if e.event in _FAILURES), None)
        yield self._span(
            place, "job", place, start, end,
            {
                _KIND: _CHAIN,
                "marco.worker": attempt.worker,
                "marco.runtime": attempt.runtime and f"{attempt.runtime} {attempt.runtime_version}",
                "marco.model_revision": attempt.revision,
                SpanAttributes.LLM_MODEL_NAME: attempt.model,
            },
            self._error(failed.detail.get("message", "worker lost")) if failed else None,
        )  # fmt: skip
        before = start
        for event in events:
            if event.event == "round" and "round" in event.detail:
                yield from self._round(attempt, event.detail["round"], before, _ns(event.at))
                before = _ns(event.at)

    def _round(
        self, attempt: AttemptRow, number: int, start: int, end: int
    ) -> Iterator[ReadableSpan]:
        place = f"round {number}"
        rollouts = [r for r in self.tree.rollouts if r.round == number]
        attributes = {_KIND: _CHAIN, "marco.round": number, "marco.branches": len(rollouts)}
        yield self._span(place, f"attempt {attempt.generation}", place, start, end, attributes)
        most = None
        if self.asked:
            before = [r for r in self.tree.rollouts if r.round < number]
            tokens = sum(r.generated_tokens for r in before)
            most = round_size(self.asked, before, tokens)[1]
        for rollout in rollouts:
            yield self._branch(attempt, rollout, most, place, start, end)

    def _branch(
        self, attempt: AttemptRow, rollout: Rollout, most: int | None, parent: str,
        start: int, end: int,
    ) -> ReadableSpan:  # fmt: skip
        """`most`: the tokens that it might generate; None: not known."""
        nodes = self.tree.nodes
        temperature = self.asked and self.asked.temperature_of(
            rollout.rollout_id, rollout.forced, rollout.reflect
        )
        at = rollout.path.index(rollout.start_id) + 1
        prompt = self._visible(self.prompt + "".join(nodes[i].text for i in rollout.path[:at]))
        written = self._visible("".join(nodes[i].text for i in rollout.path[at:]))
        given = {
            "seed": rollout.seed,
            "temperature": temperature,
            "top_p": self.config.get("top_p"),
            "max_tokens": most,
        }
        took = round(rollout.seconds * 1e9) if math.isfinite(rollout.seconds) else 0
        tokens = rollout.prompt_tokens + rollout.generated_tokens
        place = f"rollout {rollout.rollout_id}"
        return self._span(
            place, parent, place, max(start, end - took), end,
            {
                _KIND: _LLM,
                SpanAttributes.LLM_MODEL_NAME: attempt.model,
                SpanAttributes.LLM_INVOCATION_PARAMETERS: json.dumps(given),
                SpanAttributes.INPUT_VALUE: prompt,
                SpanAttributes.OUTPUT_VALUE: written,
                **_message(SpanAttributes.LLM_INPUT_MESSAGES, "user", prompt),
                **_message(SpanAttributes.LLM_OUTPUT_MESSAGES, "assistant", written),
                SpanAttributes.LLM_TOKEN_COUNT_PROMPT: rollout.prompt_tokens,
                SpanAttributes.LLM_TOKEN_COUNT_COMPLETION: rollout.generated_tokens,
                SpanAttributes.LLM_TOKEN_COUNT_TOTAL: tokens,
                SpanAttributes.LLM_TOKEN_COUNT_PROMPT_DETAILS_CACHE_READ: rollout.cached_tokens,
                # Of the GenAI conventions, whose Python constants are still called incubating.
                "gen_ai.operation.name": "text_completion",
                "gen_ai.request.model": attempt.model,
                "gen_ai.usage.input_tokens": rollout.prompt_tokens,
                "gen_ai.usage.output_tokens": rollout.generated_tokens,
                "gen_ai.usage.cache_read.input_tokens": rollout.cached_tokens,
                "gen_ai.response.finish_reasons": [str(rollout.finish)],
                "gen_ai.request.seed": rollout.seed,
                "gen_ai.request.temperature": temperature,
                "gen_ai.request.max_tokens": most,
                "marco.confidence": rollout.confidence,
                "marco.path_confidence": rollout.path_confidence,
                "marco.value": rollout.value,
                "marco.answer": self._visible(rollout.answer),
                "marco.start_node": rollout.start_id,
                "marco.forced": rollout.forced,
                "marco.path": list(rollout.path),
                "marco.reflect": str(rollout.reflect),
            },
            self._error(rollout.error) if rollout.finish is Finish.FAILED else None,
        )  # fmt: skip

    def _span(
        self, place: str, parent: str | None, name: str, start: int, end: int,
        attributes: dict[str, Any], error: str | None = None,
    ) -> ReadableSpan:  # fmt: skip
        """A span. `place` names it within the trace; times are nanoseconds since 1970."""
        return ReadableSpan(
            name=name,
            context=self._context(place),
            parent=self._caller() if parent is None else self._context(parent),
            resource=_RESOURCE,
            attributes={k: v for k, v in attributes.items() if _known(v)},
            kind=SpanKind.CLIENT if attributes[_KIND] == _LLM else SpanKind.INTERNAL,
            status=Status(StatusCode.OK) if error is None else Status(StatusCode.ERROR, error),
            start_time=min(start, end),
            end_time=end,
            instrumentation_scope=_SCOPE,
        )

    def _context(self, place: str) -> SpanContext:
        job_id = self.record.job.job_id
        ids = tracing.trace_id(job_id, self.caller), tracing.span_id(job_id, place)
        return SpanContext(*ids, is_remote=False, trace_flags=TraceFlags(1))

    def _caller(self) -> SpanContext | None:
        """The span that the job was submitted in."""
        if self.caller is None:
            return None
        _, trace_id, span_id, _ = (int(part, 16) for part in self.caller.split("-"))
        return SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(1))

    def _visible(self, text: str | None) -> str | None:
        """Text that people or the model wrote, if it may be shown."""
        return text if self.text else None

    def _error(self, message: str | None) -> str:
        return self._visible(message) or "failed"


def _known_config(config: dict[str, Any]) -> SearchConfig | None:
    """The configuration, unless it is one of an earlier version that searched in another way."""
    with suppress(SearchError, TypeError):
        return None if gone_from(config) else SearchConfig.from_json(config)
    return None


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


def _ns(at: datetime) -> int:
    """Nanoseconds since 1970; a float of seconds would lose some."""
    return round(at.timestamp() * 1e6) * 1000


def write(path: Path, traces: Iterable[Sequence[ReadableSpan]]) -> int:
    """Write one export request a line, as OTLP's file exporter does; how many traces there were."""
    return write_lines(path, (json.dumps(as_json(t), ensure_ascii=False) for t in traces))


def as_json(trace: Sequence[ReadableSpan]) -> dict[str, Any]:
    """An ExportTraceServiceRequest in OTLP's JSON form: ids are hex there, not base64."""
    request: dict[str, Any] = MessageToDict(encode_spans(trace), use_integers_for_enums=True)
    for resource in request["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                for name in _IDS:
                    if name in span:
                        span[name] = base64.b64decode(span[name]).hex()
    return request


def _check_headers() -> None:
    """The exporter leaves out what it can't read."""
    for name in ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"):
        for header in filter(str.strip, os.environ.get(name, "").split(",")):
            if not parse_env_headers(header, liberal=True):
                raise InvalidSettings(f"{name}: write NAME=VALUE,..., with percent-encoded values")


def send(url: str, traces: Iterable[Sequence[ReadableSpan]]) -> int:
    """Send traces to a collector; how many there were.

    Without a path, /v1/traces is meant. OTEL_EXPORTER_OTLP_HEADERS holds credentials.
    Raises InvalidSettings for an invalid URL, CollectorUnavailable if it refuses or is down.
    """
    try:
        parts = urlsplit(url)
        usable = parts.hostname and parts.port != 0 and is_host(parts.hostname)
    except ValueError:
        usable = False
    if not usable or parts.scheme not in ("http", "https"):
        raise InvalidSettings("--otlp: must look like http://localhost:4318")
    # It logs every try, and headers that it can't read; the error raised here is enough.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    _check_headers()
    endpoint = url if parts.path.strip("/") else urlunsplit(parts._replace(path="/v1/traces"))
    exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_TIMEOUT_S)
    count = 0
    try:
        for trace in traces:
            for start in range(0, len(trace), _SPANS_AT_ONCE):
                result = exporter.export(trace[start : start + _SPANS_AT_ONCE])
                if result is not SpanExportResult.SUCCESS:
                    # Without what may be a key: user, password and query.
                    where = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
                    raise CollectorUnavailable(
                        f"{where}: the collector did not take the traces "
                        f"({count} were sent); see that it runs and takes OTLP over HTTP"
                    )
            count += 1
    finally:
        exporter.shutdown()  # type: ignore[no-untyped-call]
    return count
