"""Traces in OTLP's JSON form in a file, or sent to a collector over HTTP."""

from __future__ import annotations

import base64
import json
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from google.protobuf.json_format import MessageToDict
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import (
    OTEL_EXPORTER_OTLP_HEADERS,
    OTEL_EXPORTER_OTLP_TRACES_HEADERS,
)
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.util.re import parse_env_headers

from marco_search.errors import CollectorUnavailable, InvalidSettings
from marco_search.export.files import whole
from marco_search.settings import is_host

_IDS = ("traceId", "spanId", "parentSpanId")
_SPANS_AT_ONCE = 200  # in one request: collectors refuse large ones
_TIMEOUT_S = 10.0


def write(path: Path, traces: Iterable[Sequence[ReadableSpan]]) -> int:
    """Write one export request a line, as OTLP's file exporter does; how many traces there were."""
    count = 0
    with whole(path) as part, part.open("w", encoding="utf-8", newline="\n") as file:
        for trace in traces:
            file.write(json.dumps(as_json(trace), ensure_ascii=False) + "\n")
            count += 1
    return count


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
    for name in (OTEL_EXPORTER_OTLP_HEADERS, OTEL_EXPORTER_OTLP_TRACES_HEADERS):
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
    _check_headers()
    # It logs every try, and headers that it can't read; the error raised here is enough.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
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
