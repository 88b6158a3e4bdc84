"""The console on real jobs in Postgres: what it shows is what is stored, and it can't write."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
from starlette.testclient import TestClient

from marco_search.console.access import Access
from marco_search.console.app import create_app
from marco_search.console.reader import Reader
from marco_search.console.rendering import page, render
from marco_search.errors import JobNotFound
from marco_search.learning.manifest import Source, register
from marco_search.store.db import Database
from marco_search.store.queue import batches, jobs
from marco_search.store.queue.batches import BatchLine
from marco_search.store.queue.leases import Worker
from marco_search.store.reads import job_record, queries
from marco_search.store.reads.queries import JobFilter
from marco_search.store.trail import trail
from tests.integration.toys import (
    FineTuned,
    claim,
    insert,
    open_database,
    question,
    run_job,
    runner,
    settings_for,
)
from tests.toy import ToyRuntime


@dataclass(frozen=True)
class Stored:
    url: str
    database: Database
    ids: list[UUID]


@pytest.fixture
def stored(database_url: str, redis_url: str) -> Iterator[Stored]:
    """Three finished jobs of two tenants, and one that waits."""
    questions = [
        question("Add 1 and 1."),
        question("What is 100 % of 2_2?", tenant="other"),
        question("Third?", options={"rollouts": 30}),
        question("Waits."),
    ]
    with open_database(database_url) as database:
        ids = [job.id for job in insert(database, *questions)]
        worker = runner(settings_for(database_url, redis_url), database, ToyRuntime())
        for _ in range(3):
            worker.run_next()
        yield Stored(database_url, database, ids)


def client_of(database: Database) -> TestClient:
    app = create_app(Reader(database), Access(None))
    return TestClient(app, base_url="http://localhost")


def test_the_page_shows_the_tree_that_is_stored(stored: Stored) -> None:
    job = stored.ids[2]
    client = client_of(stored.database)
    tree = client.get(f"/jobs/{job}/tree.json").json()
    with stored.database.transaction() as conn:
        nodes, rollouts = trail.load(conn, job)
        view = job_record.tree(conn, job)
        path = conn.execute(
            "SELECT path FROM audit.answers WHERE job_id = %s AND rank = 1", [job]
        ).fetchone()
    assert [n["node_id"] for n in tree["nodes"]] == [0, *(n.node_id for n in nodes)]
    assert [r["path"] for r in tree["rollouts"]] == [list(r.path) for r in rollouts]
    assert path is not None and tree["winning_path"] == path[0]
    for shown, row in zip(tree["nodes"], view, strict=True):
        assert (shown["node_id"], shown["visits"]) == (row.node_id, row.visits)
        assert shown["value"] == pytest.approx(row.value)
    passes = sum(1 for r in rollouts if r.finish != "failed")
    assert tree["nodes"][0]["visits"] == passes
    html = client.get(f"/jobs/{job}").text
    assert "Third?" in html and "Audit log" in html and "succeeded" in html


def test_tokens_come_with_their_candidates_as_stored(stored: Stored) -> None:
    job = stored.ids[0]
    with stored.database.transaction() as conn:
        nodes, _ = trail.load(conn, job)
        found = job_record.tokens(conn, job)
        one = job_record.tokens(conn, job, nodes[0].node_id)
    assert one == {nodes[0].node_id: found[nodes[0].node_id]}
    for node in nodes:
        if not node.tokens:
            assert node.node_id not in found
            continue
        row = found[node.node_id]
        assert row.token_texts == [t.text for t in node.tokens]
        assert row.top_ids == [i for t in node.tokens for i, _ in t.top]
        assert row.confidences == pytest.approx(node.confidences)


def test_a_job_that_waits_has_a_page_without_a_tree(stored: Stored) -> None:
    client = client_of(stored.database)
    html = client.get(f"/jobs/{stored.ids[3]}").text
    assert "The tree appears" in html and "queued" in html
    assert client.get(f"/jobs/{stored.ids[3]}/tree.json").json()["nodes"] == []
    for name in ("html", "svg", "dot", "mermaid", "json"):
        assert render(Reader(stored.database), stored.ids[3], name)


def test_filters_and_pages(stored: Stored) -> None:
    first, second, third, fourth = stored.ids

    def ids(wanted: JobFilter, limit: int = 50) -> list[UUID]:
        with stored.database.transaction() as conn:
            return [line.job_id for line in queries.page(conn, wanted, limit=limit).jobs]

    assert ids(JobFilter()) == [fourth, third, second, first]
    assert ids(JobFilter(state="queued")) == [fourth]
    assert ids(JobFilter(tenant="other")) == [second]
    assert ids(JobFilter(text="ADD 1")) == [first]
    assert ids(JobFilter(text="% of 2_2")) == [second]  # signs of LIKE stand for themselves
    assert ids(JobFilter(text="1_")) == []
    assert ids(JobFilter(text=str(third)[-8:])) == [third]
    assert ids(JobFilter(batch=uuid4())) == []
    assert ids(JobFilter(before=third)) == [second, first]
    assert ids(JobFilter(after=second), limit=1) == [third]
    with stored.database.transaction() as conn:
        page = queries.page(conn, JobFilter(), limit=2)
        assert (page.older, page.newer) == (True, False)
        page = queries.page(conn, JobFilter(before=page.jobs[-1].job_id), limit=2)
        assert (page.older, page.newer) == (False, True)


def test_what_the_caller_named_a_job_by_finds_it(stored: Stored) -> None:
    named = question("Named.", idempotency_key="rq_000", metadata={"ticket": "T-1000"})
    (made,) = insert(stored.database, named)
    with stored.database.transaction() as conn:

        def found(text: str) -> list[UUID]:
            return [line.job_id for line in queries.page(conn, JobFilter(text=text)).jobs]

        for text in ("T-1000", "RQ_0", str(made.id), str(made.id).replace("-", "")[9:20]):
            assert found(text) == [made.id], text
        (line,) = queries.page(conn, JobFilter(text="T-1000")).jobs
        assert (line.idempotency_key, line.metadata) == ("rq_000", {"ticket": "T-1000"})
        assert job_record.read(conn, made.id).payload["question"] == "Named."
        part = str(made.id)[-12:]
        assert queries.matching(conn, part) == queries.matching(conn, str(made.id)) == [made.id]
        with pytest.raises(JobNotFound):
            queries.matching(conn, "ffffffffff")
    client = client_of(stored.database)
    assert client.get(f"/jobs/{part}").url.path == f"/jobs/{made.id}"
    assert "succeeded" in client.get(f"/jobs/{str(stored.ids[0])[-8:]}").text


def test_every_order_has_all_jobs_once_in_both_directions(stored: Stored) -> None:
    with stored.database.transaction() as conn:
        for order in queries.ORDERS:
            whole = queries.page(conn, JobFilter(order=order)).jobs
            down: list[queries.JobStatus] = []
            place = JobFilter(order=order)
            while True:
                part = queries.page(conn, place, limit=1)
                down += part.jobs
                if not part.older:
                    break
                place = JobFilter(order=order, before=part.jobs[-1].job_id)
            assert down == list(whole) and {job.job_id for job in whole} == set(stored.ids), order
            back = queries.page(conn, JobFilter(order=order, after=whole[-1].job_id), limit=2)
            assert back.jobs == whole[1:3] and back.newer, order
        longest = queries.page(conn, JobFilter(order="longest")).jobs
        assert [j.seconds for j in longest] == sorted((j.seconds for j in longest), reverse=True)
        least = queries.page(conn, JobFilter(order="least confident")).jobs
        assert least[-1].confidence is None  # those without one come last
        assert queries.counts(conn, JobFilter(state="queued")) == {"queued": 1, "succeeded": 3}
        assert queries.counts(conn, JobFilter(tenant="other")) == {"succeeded": 1}


def test_the_download_has_every_job_that_fits(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("marco_search.console.reader._AT_ONCE", 2)
    client = client_of(stored.database)
    ids = [line.split(",")[0] for line in client.get("/jobs.csv").text.splitlines()]
    assert ids == ["job_id", *map(str, reversed(stored.ids))]
    assert len(client.get("/jobs.csv?tenant=other").text.splitlines()) == 2


def test_the_workers_page_says_who_is_at_what(stored: Stored) -> None:
    worker = Worker(name="there:7", host="there", pid=7)
    claimed = claim(stored.database, stored.ids[3], worker=worker)
    assert claimed is not None
    reader = Reader(stored.database, lambda: ["celery@here"])
    found = reader.workers()
    assert found.states == {"running": 1, "succeeded": 3} and found.missing == []
    at_work, idle = found.processes
    assert (at_work.worker, at_work.job_id, at_work.subject) == (
        "there:7",
        stored.ids[3],
        "Waits.",
    )
    assert (idle.claims, idle.model, idle.job_id) == (3, "toy-marco-o1", None)
    client = TestClient(create_app(reader, Access(None)), base_url="http://localhost")
    html = client.get("/workers").text
    assert "celery@here" in html and str(stored.ids[3]) in html
    metrics = client.get("/metrics").text
    assert 'marco_jobs{state="running",tenant="default"} 1.0' in metrics
    assert "marco_workers 1.0" in metrics
    client = TestClient(
        create_app(Reader(stored.database), Access(None)), base_url="http://localhost"
    )
    assert "unknown: Redis" in client.get("/workers").text


def test_doubtful_jobs_are_those_below_the_lines(stored: Stored) -> None:
    with stored.database.transaction() as conn:
        low = {j.job_id for j in queries.page(conn, JobFilter(doubt="low")).jobs}
        narrow = {j.job_id for j in queries.page(conn, JobFilter(doubt="narrow")).jobs}
        best = conn.execute("SELECT job_id, confidence, share FROM audit.answers WHERE rank = 1")
        rows = best.fetchall()
        quantiles = {
            line.job_id: line.confidence_quantile for line in queries.page(conn, JobFilter()).jobs
        }
    values = [confidence for _, confidence, _ in rows]
    for job_id, confidence, _ in rows:
        lower = sum(value < confidence for value in values)
        assert quantiles[job_id] == pytest.approx(lower / len(values))
    # Whatever numbers a model gives, some are its lowest.
    assert low == {i for i, confidence, _ in rows if confidence == min(values)}
    assert narrow == {i for i, _, share in rows if share < queries.NARROW_SHARE}


def test_sums_of_tenants_are_those_of_the_usage_view(stored: Stored) -> None:
    with stored.database.transaction() as conn:
        totals = {t.name: t for t in queries.tenants(conn)}
        usage = conn.execute("SELECT tenant, jobs, nodes, generated_tokens FROM audit.tenant_usage")
        for tenant, jobs, nodes, tokens in usage:
            total = totals[tenant]
            assert (total.jobs, total.nodes, total.generated_tokens) == (jobs, nodes, tokens)
    assert totals["default"].states == {"queued": 1, "succeeded": 2}
    assert totals["other"].confidence is not None


def test_a_batch_has_sums_of_its_own(stored: Stored) -> None:
    batch = uuid4()
    with stored.database.transaction() as conn:
        assert queries.batches(conn) == []
        batches.begin(conn, tenant="default", source="/tmp/in.jsonl", batch_id=batch)
        jobs.insert(conn, [question("In a batch.")] * 2, tenant="default", batch_id=batch)
        wrong = BatchLine(line=3, job_id=None, custom_id="c", field="text", reason="is missing")
        batches.refuse(conn, batch, [wrong])
        ((upload, total),) = queries.batches(conn)
    assert (upload.id, upload.refused, upload.states) == (batch, 1, {"queued": 2})
    shown = page("totals.html", title="Batches", one="batch", found=[(upload, total)])
    assert ">in.jsonl</span>, <strong>upload stopped" in shown
    assert (total.name, total.jobs, total.confidence) == (str(batch), 2, None)


def test_revisions_are_compared_and_data_sets_lead_to_their_trees(stored: Stored) -> None:
    first, other = stored.ids[:2]
    manifest: dict[str, Any] = {
        "name": "round-1", "kind": "preference", "manifest_sha256": "d" * 64, "command": "marco",
        "rules": {"vote_undecided": {"share": 0.6}}, "models": [], "seed": 1,
        "counts": {"in": 9, "out": 2, "dropped": {"vote_undecided": 7}},
    }  # fmt: skip
    ids = [f"{i:016x}" for i in range(26)]
    made = [Source(i, "chosen", first, 0, [0]) for i in ids]
    made += [Source(i, "rejected", first, 1, [0]) for i in ids]
    with stored.database.transaction() as conn:
        register(conn, manifest, "default", made)
        register(conn, manifest | {"name": "hidden"}, None, [])
        about = {"name": "edited", "kind": "sft", "manifest_sha256": "e" * 64}
        register(conn, about | {"counts": {"out": 0}}, "default", [])
    settings = settings_for(stored.url, "redis://nobody")
    for text, tenant in (("Add 1 and 1.", "default"), ("What is 100 % of 2_2?", "other")):
        again = insert(stored.database, question(text, tenant=tenant, options={"seed": 5}))[0].id
        run_job(runner(settings, stored.database, FineTuned(("9",))), stored.database, again)

    client = client_of(stored.database)
    html = client.get("/models", params={"old": "0000", "new": "1111"}).text
    assert f"/jobs/{first}" in html and f"/jobs/{other}" in html and "/datasets/dddd" in html
    assert client.get("/models", params={"old": "0000", "new": "none"}).status_code == 400
    assert f'href="/datasets/{"d" * 64}"' in client.get(f"/jobs/{again}").text
    assert "Samples of it are in" in client.get(f"/jobs/{first}").text
    assert "vote undecided 7" in client.get("/datasets").text
    page = client.get(f"/datasets/{'d' * 10}").text
    assert f"/jobs/{first}#rollout-1" in page and "Compare it with its parent" in page
    assert page.count("rejected</span>") == 25 and f"after={24:016x}" in page
    page = client.get(f"/datasets/{'d' * 64}?after={24:016x}").text
    assert page.count("rejected</span>") == 1 and f"before={25:016x}" in page
    assert "0 looked at" in client.get(f"/datasets/{'e' * 64}").text  # edited by hand
    assert client.get("/datasets/ffffffff").status_code == 404

    with auditor_of(stored, "other") as client:
        html = client.get("/models", params={"old": "0000", "new": "1111"}).text
        assert f"/jobs/{other}" in html and f"/jobs/{first}" not in html
        assert "No data set yet" in client.get("/datasets").text
        assert client.get(f"/datasets/{'d' * 64}").status_code == 404


def test_the_json_format_is_the_documented_document(stored: Stored) -> None:
    data = json.loads(render(Reader(stored.database), stored.ids[0], "json"))
    assert set(data) == {
        "format", "version", "job", "answers", "winning_path", "nodes", "rollouts", "attempts",
        "audit_log", "verification", "tokens", "vocabulary",
    }  # fmt: skip
    assert data["job"]["subject"] == "Add 1 and 1."
    assert data["attempts"][0]["model"] == "toy-marco-o1"
    assert data["verification"]["status"] == "valid"
    assert data["audit_log"][0]["event"] == "submitted"
    known = {r["rollout_id"] for r in data["rollouts"]}
    assert all(set(answer["rollouts"]) <= known for answer in data["answers"])


def test_a_job_that_was_tampered_with_is_shown_as_such_and_still_drawn(stored: Stored) -> None:
    job = stored.ids[2]
    client = client_of(stored.database)
    assert "Verified." in client.get(f"/jobs/{job}").text
    assert "It is sealed when it has ended" in client.get(f"/jobs/{stored.ids[3]}").text
    with psycopg.connect(stored.url) as admin:
        admin.execute("SET session_replication_role = replica")  # as a superuser would
        admin.execute("DELETE FROM nodes WHERE job_id = %s AND node_id = 1", [job])
    client = client_of(stored.database)
    html = client.get(f"/jobs/{job}").text
    assert "was changed after it ended" in html and "node_id 1" in html
    nodes = client.get(f"/jobs/{job}/tree.json").json()["nodes"]
    assert 1 not in {node["node_id"] for node in nodes} and len(nodes) > 2
    assert client.get(f"/jobs/{job}/report.html").status_code == 200
    assert client.get(f"/jobs/{job}/tree.svg").status_code == 200


def test_a_read_only_database_refuses_to_write(stored: Stored) -> None:
    database = Database(stored.url, application="test", read_only=True)
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction), database.transaction() as conn:
        conn.execute("UPDATE jobs SET priority = 0")
    database.close()


@contextmanager
def auditor_of(stored: Stored, tenant: str) -> Iterator[TestClient]:
    """The console with the login of an auditor of this tenant."""
    login = f"auditor_{uuid4().hex[:8]}"
    with psycopg.connect(stored.url, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {login} LOGIN PASSWORD 'secret' IN ROLE marco_auditor")
        admin.execute("INSERT INTO auditors VALUES (%s, %s)", [login, tenant])
    parts = urlsplit(stored.url)
    place = f"{login}:secret@{parts.hostname}:{parts.port}"
    url = urlunsplit(parts._replace(netloc=place))
    try:
        with open_database(url) as database:
            yield client_of(database)
    finally:
        with psycopg.connect(stored.url, autocommit=True) as admin:
            admin.execute(f"DROP ROLE {login}")


def test_an_auditor_s_login_is_enough_and_sees_its_tenants_only(stored: Stored) -> None:
    with auditor_of(stored, "other") as client:
        html = client.get("/jobs").text
        assert str(stored.ids[1]) in html and str(stored.ids[0]) not in html
        assert client.get(f"/jobs/{stored.ids[0]}").status_code == 404
        assert client.get(f"/jobs/{stored.ids[1]}").status_code == 200
        assert client.get(f"/jobs/{stored.ids[1]}/report.html").status_code == 200
        assert client.get(f"/jobs/{stored.ids[1]}/nodes/1.json").status_code == 200
        assert client.get("/tenants").text.count("<tr>") == 2
        assert len(client.get("/jobs.csv").text.splitlines()) == 2
        assert client.get("/workers").status_code == client.get("/healthz").status_code == 200
        assert client.get(f"/jobs/{str(stored.ids[0])[-8:]}").status_code == 404
        assert "Not verified here" in client.get(f"/jobs/{stored.ids[1]}").text


Process = subprocess.Popen[str]


def started(stored: Stored, *words: str, **env: str) -> tuple[Process, dict[str, str]]:
    """`marco console` as a process, and the line it printed when ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "marco_search.cli.main", "console", "--port", "0", "--json", *words],
        env={**os.environ, "DATABASE_URL": stored.url, "PYTHONPATH": str(Path.cwd()), **env},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        assert process.stderr is not None
        pytest.fail(process.stderr.read())
    return process, json.loads(line)


def stopped(process: Process) -> tuple[int, str]:
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


def test_the_command_serves_until_it_is_stopped(stored: Stored) -> None:
    process, printed = started(stored)
    try:
        assert set(printed) == {"address"}
        answer = httpx.get(f"{printed['address']}jobs")
        assert answer.status_code == 200 and str(stored.ids[0]) in answer.text
        port = printed["address"].rstrip("/").rpartition(":")[2]
        again = subprocess.run(
            [sys.executable, "-m", "marco_search.cli.main", "console", "--port", port],
            env={**os.environ, "DATABASE_URL": stored.url},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert again.returncode == 4 and "can't listen" in again.stderr
    finally:
        code, err = stopped(process)
    assert (code, err) == (0, "")


def test_open_to_others_it_requires_the_printed_token(stored: Stored) -> None:
    process, printed = started(stored, "--host", "0.0.0.0", MARCO_CONSOLE_TOKEN="")
    try:
        assert printed["address"].startswith("http://127.0.0.1:")  # one that a browser can call
        url = printed["address"] + "jobs"
        assert httpx.get(url).status_code == 401
        token = {"authorization": f"Bearer {printed['token']}"}
        assert httpx.get(url, headers=token).status_code == 200
    finally:
        _, err = stopped(process)
    assert printed["token"] not in err


def test_half_requests_do_not_block_others(stored: Stored) -> None:
    """More connections than it has files, none of which ever sends a whole request."""
    process, printed = started(stored)
    try:
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (400, 400))
        parts = urlsplit(printed["address"])
        with ExitStack() as held:
            for _ in range(500):
                half = held.enter_context(socket.create_connection((parts.hostname, parts.port)))
                with suppress(ConnectionError):  # gave way already
                    half.sendall(b"GET / HTTP/1.1\r\nX: ")
            assert httpx.get(f"{printed['address']}jobs", timeout=60).status_code == 200
            with socket.create_connection((parts.hostname, parts.port)) as gone:
                head = f"POST /login HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Length: 9\r\n\r\n"
                gone.sendall(head.encode() + b"token=")
            half.settimeout(60)
            with suppress(ConnectionError):
                assert half.recv(1) == b""  # its time was up
    finally:
        code, err = stopped(process)
    assert (code, err) == (0, "")
