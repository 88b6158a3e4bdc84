"""What the server of console and API notes about each request."""

from __future__ import annotations

import asyncio

import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient

from marco_search import metrics, tracing
from marco_search.http_server import _Observed

SPAN = "00-0000000000000000000000000000002a-0000000000000007-01"


def test_requests_are_counted_by_route_and_belong_to_their_client_s_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "_counting", {})
    registry = CollectorRegistry()
    metrics.count([metrics.API], registry)
    app = FastAPI()

    @app.get("/jobs/{job}")
    def job(job: str) -> str | None:
        return tracing.current()

    client = TestClient(_Observed(app, asyncio.Event()))
    assert client.get("/jobs/1", headers={"traceparent": SPAN}).json() == SPAN
    assert client.get("/jobs/2", headers={"traceparent": "nonsense"}).json() is None
    assert client.get("/jobs/3").json() is None
    assert client.head("/jobs/4").status_code == 200
    client.request("SCAN", "/etc/passwd")

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, labels)

    counted = "marco_http_requests_total"
    assert value(counted, method="GET", route="/jobs/{job}", status="200") == 3
    assert value(counted, method="HEAD", route="/jobs/{job}", status="200") == 1
    assert value(counted, method="(other)", route="(none)", status="404") == 1
    assert value("marco_http_request_seconds_count", route="/jobs/{job}") == 4


def test_a_request_has_an_id_which_the_log_of_a_bug_has_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = FastAPI()

    @app.get("/bug")
    def bug() -> None:
        raise RuntimeError("of ours")

    client = TestClient(_Observed(app, asyncio.Event()))
    answer, other = client.get("/bug"), client.get("/nowhere")
    assert (answer.status_code, other.status_code) == (500, 404)
    assert answer.headers["x-request-id"] != other.headers["x-request-id"]
    assert answer.headers["x-request-id"] in caplog.text and "of ours" in caplog.text
