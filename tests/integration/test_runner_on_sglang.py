"""A worker's search on an SGLang server that fails, and what of it is kept and told the server."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from marco_search.export import otlp
from marco_search.export.tables import Filter
from marco_search.settings import Settings
from marco_search.store.db import Database
from marco_search.store.queue import jobs, leases, recovery, scheduling
from marco_search.store.queue.leases import Worker
from marco_search.store.reads import queries
from tests.integration.runtime.odd_replies import ODD
from tests.integration.runtime.sglang_server import (
    Handler,
    Server,
    completion,
    runtime,
    serving,
    until,
)
from tests.integration.toys import insert, question, runner, settings_for

OTHER = Worker(name="other", host="h", pid=2)


@pytest.fixture
def settings(database_url: str) -> Settings:
    # Redis is not asked.
    return settings_for(database_url, "redis://127.0.0.1:1/0", heartbeat_s=0.05, lease_s=20)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


def sql(database: Database, statement: str, *values: Any) -> list[Any]:
    with database.transaction() as conn:
        return conn.execute(statement.encode(), values).fetchall()


def test_the_trail_says_which_branches_failed_and_why(
    settings: Settings, database: Database, server: Server
) -> None:
    def some(handler: Handler, body: dict[str, Any]) -> bool:
        seed = body["sampling_params"].get("sampling_seed")
        if seed is None or seed % 3:
            return False
        handler.send({"error": {"message": "out of luck"}}, 400)
        return True

    server.act = some
    (stored,) = insert(database, question(options={"rollouts": 16}))
    with runtime(server) as opened:
        runner(settings, database, opened).run_next()
    rows = sql(database, "SELECT finish, seed, error FROM rollouts WHERE job_id = %s", stored.id)
    assert len(rows) == 16
    for finish, seed, error in rows:
        assert (finish == "failed") == (seed % 3 == 0) == ("out of luck" in (error or ""))
    assert 0 < sum(seed % 3 == 0 for _, seed, _ in rows) < 16
    with database.transaction() as conn:
        (outcome,) = queries.results(conn, [stored.id])
    assert outcome.state == "succeeded"
    assert outcome.answer is not None


def test_servers_hear_of_the_trace_that_the_job_was_submitted_in(
    settings: Settings, database: Database, server: Server
) -> None:
    """And the spans that are exported later fit in between."""
    heard: set[str | None] = set()

    def note(handler: Handler, body: dict[str, Any]) -> bool:
        heard.add(handler.headers["traceparent"])
        return False

    server.act = note
    caller = SpanContext(7, 9, is_remote=False, trace_flags=TraceFlags(1))
    token = context.attach(set_span_in_context(NonRecordingSpan(caller)))
    (inside,) = insert(database, question())
    context.detach(token)
    (outside,) = insert(database, question("What is 2 + 2?"))
    with runtime(server) as opened:
        one = runner(settings, database, opened)
        one.run_next()
        one.run_next()
    with database.transaction() as conn:
        first, second = otlp.traces(conn, Filter())
    for spans, job, trace in ((first, inside, 7), (second, outside, outside.id.int)):
        by_name = {span.name: span.context for span in spans}
        assert {found.trace_id for found in by_name.values()} == {trace}
        place = by_name["attempt 1"]
        heard.remove(f"00-{trace:032x}-{place.span_id:016x}-01")
        assert sql(database, "SELECT state FROM jobs WHERE id = %s", job.id) == [("succeeded",)]
    assert not heard
    assert first[0].parent is not None and first[0].parent.span_id == caller.span_id
    assert second[0].parent is None


def test_no_answer_is_odd_enough_to_end_a_job(
    settings: Settings, database: Database, server: Server
) -> None:
    """One answer in four is odd, each in another way; a job beside it goes on."""
    odd: dict[int, str] = {}
    kinds = iter([name for name in ODD if name != "more tokens"])  # here more are asked for
    calls = itertools.count(1)
    lock = threading.Lock()

    def some(handler: Handler, body: dict[str, Any]) -> bool:
        seed = body["sampling_params"].get("sampling_seed")
        if body["sampling_params"]["max_new_tokens"] == 0 or "Odd" not in body["text"]:
            return False
        with lock:
            name = next(kinds, None) if next(calls) % 4 == 0 else None
            if name is None:
                return False
            odd[seed] = name
        answer = completion(body)
        ODD[name][0](answer)
        handler.send(answer)
        return True

    server.act = some
    # No round is of one branch: it would fail with it, and the job be tried again.
    many = {"rollouts": 4 * len(ODD), "strategy": "vote", "early_stop": False}
    one, _ = insert(
        database, question("Odd?", options=many), question("Even?", options={"rollouts": 8})
    )
    with runtime(server) as opened:
        for _ in range(2):
            runner(settings, database, opened).run_next()
    rows = sql(database, "SELECT seed, error FROM rollouts WHERE job_id = %s", one.id)
    failed = {seed: error for seed, error in rows if error is not None}
    assert set(odd.values()) == ODD.keys() - {"more tokens"}
    assert {seed: ODD[name][1] in failed[seed] for seed, name in odd.items()} == dict.fromkeys(
        failed, True
    )
    states = sql(database, "SELECT state, failures FROM jobs")
    assert states == [("succeeded", 0)] * 2
    (found,) = sql(database, "SELECT max(seconds), max(prompt_tokens) FROM rollouts")
    assert found[0] < 60
    assert found[1] < 10_000


def test_what_a_server_says_is_stored_without_its_key(
    settings: Settings, database: Database, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """It echoes the request's headers, as some proxies do, and forges a line of the log."""

    def echo(handler: Handler, body: dict[str, Any]) -> bool:
        handler.send(
            {"detail": f"{handler.headers}\n2026-01-01 CRITICAL root: FORGED\x1b[31m"}, 400
        )
        return True

    server.act = echo
    insert(database, question())
    with runtime(server, MARCO_RUNTIME_API_KEY="sesame-open") as opened:
        runner(settings, database, opened).run_next()
    (row,) = sql(database, "SELECT last_error::text FROM jobs")
    events = sql(database, "SELECT detail::text FROM audit_log")
    kept = f"{row} {events} {caplog.text}"
    assert "FORGED" in kept
    assert "sesame" not in kept
    assert "\x1b" not in caplog.text
    assert not any(line.startswith("2026-01-01") for line in caplog.text.splitlines())


@pytest.mark.parametrize("why", ["cancelled", "lease lost"])
def test_a_search_that_is_to_end_ends_on_the_server_as_well(
    settings: Settings, database: Database, server: Server, why: str
) -> None:
    """In the middle of a round: the server hears which requests nobody waits for."""

    def hang(handler: Handler, body: dict[str, Any]) -> bool:
        if body["sampling_params"]["max_new_tokens"] == 0:
            return False
        server.released.wait(60)
        return True

    server.act = hang
    (stored,) = insert(database, question())
    with runtime(server) as opened:
        thread = threading.Thread(target=runner(settings, database, opened).run_next)
        thread.start()
        until(lambda: len(server.calls) >= 2)
        with database.transaction() as conn:
            if why == "cancelled":
                jobs.cancel(conn, [stored.id])
            else:
                conn.execute("UPDATE jobs SET lease_expires_at = now() - interval '1 s'")
                recovery.reclaim(conn, quarantine_after=2)
                scheduling.due(conn)
                begun_on = scheduling.key(opened.info.model, opened.info.revision)
                assert leases.claim_next(conn, OTHER, lease_s=60, begun_on=begun_on)
        thread.join(30)
        assert not thread.is_alive()
        until(lambda: set(server.aborted) >= {call["rid"] for call in server.calls})
    assert sql(database, "SELECT count(*) FROM rollouts") == [(0,)]
    (state,) = sql(database, "SELECT state FROM jobs")
    assert state[0] == ("cancelled" if why == "cancelled" else "running")
