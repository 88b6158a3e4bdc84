"""Exports: what is stored comes out again, whole, filtered, and as traces."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import UUID

import psycopg
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from marco_search import settings as settings_module
from marco_search.cli.audit_commands import export
from marco_search.errors import InvalidSettings, RuntimeUnavailable
from marco_search.export.otlp import traces
from marco_search.export.tables import Filter
from marco_search.search.branches import Branch, Expansion
from marco_search.search.tree import Node, Rollout
from marco_search.store.db import Database
from marco_search.store.trail import trail
from tests.integration.toys import (
    Interrupted,
    insert,
    open_database,
    question,
    run_job,
    runner,
    schedule,
    settings_for,
)
from tests.toy import ToyRuntime


@pytest.fixture
def database(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """A database with a job of each of two tenants, which the command line uses."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    settings_module.load.cache_clear()
    with open_database(database_url) as opened:
        settings = settings_for(database_url, "redis://127.0.0.1:1/0")
        questions = [question("What is 1 + 1?"), question("Secret?", tenant="other")]
        for _ in insert(opened, *questions):
            runner(settings, opened, ToyRuntime(failing=0.1)).run_next()
        yield opened
    settings_module.load.cache_clear()


def run(*words: str) -> Result:
    result = CliRunner().invoke(export, words)
    assert result.exception is None, result.output
    return result


def stored(database: Database) -> tuple[UUID, list[Node], list[Rollout]]:
    with database.transaction() as conn:
        row = conn.execute("SELECT id FROM jobs WHERE tenant = 'default'").fetchone()
        assert row is not None
        return row[0], *trail.load(conn, row[0])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_json_lines_hold_what_is_stored(database: Database, tmp_path: Path) -> None:
    run(str(tmp_path), "--table", "jobs", "--table", "nodes", "--table", "tokens")
    job_id, nodes, _ = stored(database)
    (job,) = lines(tmp_path / "jobs.jsonl")
    assert (job["job_id"], job["payload"]["question"]) == (str(job_id), "What is 1 + 1?")
    assert len(job["root"]) == 64
    written = lines(tmp_path / "nodes.jsonl")
    assert [n["text"] for n in written] == [n.text for n in nodes]
    assert [n["confidences"] for n in written] == [list(n.confidences) for n in nodes]
    tokens = lines(tmp_path / "tokens.jsonl")
    assert [t["text"] for t in tokens] == [t.text for n in nodes for t in n.tokens]
    assert [t["top_logprobs"] for t in tokens] == [
        [p for _, p in t.top] for n in nodes for t in n.tokens
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "jobs.jsonl",
        "nodes.jsonl",
        "tokens.jsonl",
    ]


def test_parquet_holds_the_same_bits(database: Database, tmp_path: Path) -> None:
    run(str(tmp_path), "--format", "parquet", "--all-tenants")
    assert pq.read_table(tmp_path / "jobs.parquet").num_rows == 2
    run(str(tmp_path), "--format", "parquet")  # again: the files are replaced
    _, nodes, rollouts = stored(database)
    table = pq.read_table(tmp_path / "nodes.parquet").to_pylist()
    assert [n["logprobs"] for n in table] == [[t.logprob for t in n.tokens] for n in nodes]
    found = pq.read_table(tmp_path / "rollouts.parquet").to_pylist()
    assert [(r["path"], r["value"]) for r in found] == [(list(r.path), r.value) for r in rollouts]


def test_filters_choose_jobs_and_text_can_be_left_out(database: Database, tmp_path: Path) -> None:
    run(str(tmp_path), "--all-tenants", "--table", "jobs", "--until", "2000-01-01")
    assert (tmp_path / "jobs.jsonl").read_text() == ""
    run(str(tmp_path), "--tenant", "other", "--no-text", "--table", "tokens", "--table", "jobs")
    everything = (tmp_path / "jobs.jsonl").read_text() + (tmp_path / "tokens.jsonl").read_text()
    assert "Secret" not in everything
    assert "token_id" not in lines(tmp_path / "tokens.jsonl")[0]
    assert lines(tmp_path / "jobs.jsonl")[0]["tenant"] == "other"


def test_a_failed_export_leaves_the_old_file_and_no_other(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(str(tmp_path), "--table", "nodes")
    before = (tmp_path / "nodes.jsonl").read_bytes()

    def fail(*given: Any) -> Any:
        raise OSError("disk full")

    monkeypatch.setattr("marco_search.export.tables._json_value", fail)
    assert isinstance(
        CliRunner().invoke(export, [str(tmp_path), "--table", "nodes"]).exception, OSError
    )
    assert [p.name for p in tmp_path.iterdir()] == ["nodes.jsonl"]
    assert (tmp_path / "nodes.jsonl").read_bytes() == before


@contextmanager
def collector(status: int = 200) -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """A small OpenTelemetry collector: its URL, and what it was sent."""
    got: list[ExportTraceServiceRequest] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["content-length"]))
            got.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *given: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", got
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_collector_gets_one_trace_for_each_job(database: Database) -> None:
    job_id, nodes, rollouts = stored(database)
    with collector() as (url, got):
        run("--otlp", url)
    spans = {
        s.name: s for g in got for r in g.resource_spans for c in r.scope_spans for s in c.spans
    }
    assert {s.trace_id for s in spans.values()} == {job_id.bytes}
    rounds = max(r.round for r in rollouts)
    assert len(spans) == 2 + rounds + len(rollouts)
    root = spans["marco reasoning"]
    assert not root.parent_span_id
    assert spans["attempt 1"].parent_span_id == root.span_id
    assert spans["round 1"].parent_span_id == spans["attempt 1"].span_id
    branch = rollouts[0]
    span = spans["rollout 0"]
    assert span.parent_span_id == spans["round 1"].span_id
    attributes = {a.key: a.value for a in span.attributes}
    assert attributes["openinference.span.kind"].string_value == "LLM"
    assert attributes["llm.model_name"].string_value == "toy-marco-o1"
    assert attributes["llm.token_count.completion"].int_value == branch.generated_tokens
    assert attributes["gen_ai.usage.output_tokens"].int_value == branch.generated_tokens
    assert attributes["marco.confidence"].double_value == branch.confidence
    written = "".join(n.text for n in nodes if n.node_id in branch.path)
    assert attributes["llm.output_messages.0.message.content"].string_value == written
    assert "What is 1 + 1?" in attributes["llm.input_messages.0.message.content"].string_value
    for one in spans.values():
        assert 0 < one.start_time_unix_nano <= one.end_time_unix_nano
    failed = [r.rollout_id for r in rollouts if r.error]
    assert all(spans[f"rollout {i}"].status.code == 2 for i in failed)


def test_a_trace_has_what_each_branch_was_asked_with(database: Database, database_url: str) -> None:
    """Greedy thoughts and forks among samples, and what the budget left for them."""
    asked = dict[int, tuple[float, int]]()

    class Noting(ToyRuntime):
        def branch(self, expansions: Sequence[Expansion]) -> list[Branch]:
            for one in (request for e in expansions for request in e.branches):
                asked[one.branch_id] = one.temperature, one.max_new_tokens
            return super().branch(expansions)

    settings = settings_for(database_url, "redis://127.0.0.1:1/0")
    seen = set[tuple[bool, float, int]]()
    for strategy in ("tree", "adaptive"):
        options = {"strategy": strategy, "rollouts": 9, "max_tokens": 200}
        (job,) = insert(database, question("What is 3 + 3?", options=options))
        run_job(runner(settings, database, Noting()), database, job.id)
        with database.transaction() as conn:
            _, rollouts = trail.load(conn, job.id)
            (spans,) = traces(conn, Filter(jobs=[job.id]))
        for r in rollouts:
            (found,) = (s.attributes or {} for s in spans if s.name == f"rollout {r.rollout_id}")
            temperature, most = asked[r.rollout_id]
            forked = r.forced is not None  # its candidate counts as generated
            wanted = {"temperature": temperature, "max_tokens": most + forked}
            assert {name: found[f"gen_ai.request.{name}"] for name in wanted} == wanted
            seen.add((forked, temperature, most))
    assert {(forked, temperature) for forked, temperature, _ in seen} == {
        (False, 0.0),
        (False, 1.0),
        (True, 0.0),
    }
    assert len({most for _, _, most in seen}) > 2


def test_an_attempt_that_failed_is_an_error_in_its_trace(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    settings = settings_for(database_url, "redis://127.0.0.1:1/0")
    (job,) = insert(database, question("What is 2 + 2?"))

    def fail() -> None:
        raise RuntimeUnavailable("the server is away")

    def lose() -> None:
        with database.transaction() as conn:
            conn.execute("UPDATE jobs SET lease_expires_at = now() - interval '1 s'")
        schedule(database)

    for act in (fail, lose, lambda: None):
        run_job(runner(settings, database, Interrupted(1, act)), database, job.id)
        with database.transaction() as conn:
            conn.execute("UPDATE jobs SET run_after = now() WHERE id = %s", [job.id])
    run(str(tmp_path), "--format", "otlp-json", "--job", str(job.id))
    (trace,) = lines(tmp_path / "traces.jsonl")
    spans = {s["name"]: s for s in trace["resourceSpans"][0]["scopeSpans"][0]["spans"]}
    said = [spans[f"attempt {i}"]["status"] for i in (1, 2, 3)]
    assert said[0] == {"code": 2, "message": "the server is away"}
    assert said[1:] == [{"code": 2, "message": "worker lost"}, {"code": 1}]
    assert spans["marco reasoning"]["status"] == {"code": 1}


def test_a_trace_in_a_file_is_the_same_each_time_and_may_have_no_text(
    database: Database, tmp_path: Path
) -> None:
    run(str(tmp_path), "--format", "otlp-json")
    path = tmp_path / "traces.jsonl"
    before = path.read_text()
    run(str(tmp_path), "--format", "otlp-json")
    assert path.read_text() == before
    (request,) = lines(path)
    span = request["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    assert span["traceId"] == stored(database)[0].hex
    assert len(span["spanId"]) == 16
    run(str(tmp_path), "--format", "otlp-json", "--no-text")
    assert "1 + 1" in before
    assert "1 + 1" not in path.read_text()


def test_numbers_that_are_not_finite_are_exported_as_unknown(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    """No such number is stored any more; a trail of an earlier version may have some."""
    with psycopg.connect(database_url) as conn:
        conn.execute("SET session_replication_role = replica")  # the trail is append-only
        conn.execute("UPDATE rollouts SET seconds = 'infinity', value = 'nan', confidence = 'nan'")
        conn.execute(
            "UPDATE nodes SET confidences ="
            " array_fill('-infinity'::float8, ARRAY[cardinality(confidences)])"
        )
        conn.execute("UPDATE jobs SET seconds = 'nan', confidence = 'infinity'")
    run(str(tmp_path))
    rollouts = lines(tmp_path / "rollouts.jsonl")
    assert {(r["seconds"], r["value"], r["confidence"]) for r in rollouts} == {(None, None, None)}
    assert lines(tmp_path / "jobs.jsonl")[0]["seconds"] is None
    assert "Infinity" not in (tmp_path / "nodes.jsonl").read_text()
    run(str(tmp_path), "--format", "otlp-json")
    assert not {"NaN", "Infinity"} & set(
        re.findall(r"[A-Za-z]+", (tmp_path / "traces.jsonl").read_text())
    )
    run(str(tmp_path), "--format", "parquet")


def test_an_address_of_no_collector_is_refused(database: Database) -> None:
    for url in ("http://[::1", "http://h:99999", "http://a..b", "ftp://h", ""):
        refused = CliRunner().invoke(export, ["--otlp", url]).exception
        assert isinstance(refused, InvalidSettings), url


def test_headers_that_can_not_be_sent_are_refused_and_not_repeated(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for header in ("hush", "x y=hush", "a=b,c=hush\xe9", "a=hush\nx"):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", header)
        result = CliRunner().invoke(export, ["--otlp", "http://127.0.0.1:9"])
        assert isinstance(result.exception, InvalidSettings)
        assert "hush" not in str(result.exception) + result.output + caplog.text


def test_a_limit_that_the_sdk_can_not_read_is_a_bad_setting(database: Database) -> None:
    words = [
        sys.executable,
        "-m",
        "marco_search.cli.main",
        "export",
        "--otlp",
        "http://127.0.0.1:9",
    ]
    wrong = {**os.environ, "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "abc"}
    done = subprocess.run(words, env=wrong, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT" in done.stderr) == (2, True)


def test_a_collector_that_refuses_is_an_error(database: Database) -> None:
    with collector(status=400) as (url, _):
        result = CliRunner().invoke(export, ["--otlp", url])
    assert "did not take the traces" in str(result.exception)
