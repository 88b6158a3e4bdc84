"""`marco serve` as its users call it: with OpenAI's own client, and with plain HTTP."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import openai
import pytest
from starlette.testclient import TestClient
from starlette.types import ASGIApp

from marco_search import settings as settings_module
from marco_search.api import create_app, job_routes
from marco_search.api.access import Caller, Service
from marco_search.http_server import bound
from marco_search.local import ServiceUrls
from marco_search.store import api_keys
from marco_search.store.api_keys import RIGHTS, ApiKey, new_key
from marco_search.store.db import Database
from producer import AsyncProducer, Producer
from tests.integration.toys import open_database, runner, settings_for, wait_until
from tests.toy import ToyRuntime


@dataclass(frozen=True)
class Api:
    address: str
    database: Database
    env: dict[str, str]

    def key(self, **given: Any) -> str:
        with self.database.transaction() as conn:
            return api_keys.create(conn, **({"tenant": "acme"} | given))[0]

    def http(self, **given: Any) -> httpx.Client:
        """A client with a key of its own, made with what is `given`."""
        head = {"Authorization": f"Bearer {self.key(**given)}"}
        return httpx.Client(base_url=self.address, headers=head, timeout=60)

    def openai(self, **given: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.address}v1", api_key=self.key(**given), timeout=60)

    def marco(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "marco_search.cli.main", *words]
        return subprocess.run(command, env=self.env, capture_output=True, text=True, check=False)


@contextmanager
def serving(env: dict[str, str], *words: str) -> Iterator[dict[str, str]]:
    """`marco serve` as a process, and what it printed when ready."""
    command = [sys.executable, "-m", "marco_search.cli.main", "serve", "--json", "--port", "0"]
    process = subprocess.Popen([*command, *words], env=env, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline()) | {"pid": str(process.pid)}
    finally:
        process.terminate()
        assert process.wait(60) == 0


@pytest.fixture(scope="module")
def api(services: ServiceUrls, module_database_url: str) -> Iterator[Api]:
    url = module_database_url
    env = {**os.environ, "DATABASE_URL": url, "REDIS_URL": services.redis_url}
    env |= {"PYTHONPATH": str(Path.cwd()), "MARCO_API_WAIT_S": "60"}
    with serving(env) as printed, closing(Database(url, application="test")) as database:
        assert printed["key"].startswith("marco_")  # there was none before
        yield Api(printed["address"], database, env)


Work = Callable[[], None]


@pytest.fixture
def work(api: Api, services: ServiceUrls) -> Iterator[Work]:
    """Answers jobs in the background with the toy model."""
    settings = settings_for(api.env["DATABASE_URL"], services.redis_url)
    ended = threading.Event()
    with open_database(api.env["DATABASE_URL"]) as database:
        worker = runner(settings, database, ToyRuntime())

        def loop() -> None:
            while not ended.wait(0.05):
                worker.run_next()

        thread = threading.Thread(target=loop)
        thread.start()
        yield worker.run_next
        ended.set()
        thread.join()


ASKED: dict[str, Any] = {
    "model": "step",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 1 + 1?"},
    ],
    "max_completion_tokens": 1000,
}


def refused(answer: httpx.Response, status: int, code: str) -> str:
    """The message of an error in OpenAI's shape."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == code and set(error) == {"message", "type", "param", "code"}
    return str(error["message"])


def test_keys_are_made_listed_and_revoked(api: Api) -> None:
    made = api.marco("keys", "create", "--tenant", "acme", "--name", "cron", "--right", "read")
    key = made.stdout.strip()
    assert "shown only once" in made.stderr
    listed = json.loads(api.marco("keys", "list", "--tenant", "acme", "--json").stdout)["keys"][0]
    assert listed["rights"] == ["read"] and listed["id"] in key and key not in str(listed)
    with api.database.transaction() as conn:
        assert key not in str(conn.execute("SELECT * FROM api_keys").fetchall())
    head = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=api.address, headers=head, timeout=60) as client:
        assert client.get("/nowhere").status_code == 404
        assert "revoked" in api.marco("keys", "revoke", listed["id"], "--tenant", "acme").stdout
        assert "was revoked" in refused(client.get("/nowhere"), 401, "invalid_api_key")
    assert api.marco("keys", "revoke", "0123", "--tenant", "acme").returncode == 3
    for wrong in (("--expires-in", "1e12"), ("--tenant", "x" * 1000)):
        assert api.marco("keys", "create", *wrong).returncode == 2
    assert api.marco("keys", "list", "--all-tenants").returncode == 0


def test_who_is_not_let_in(api: Api) -> None:
    assert httpx.get(f"{api.address}healthz", timeout=60).json() == {"status": "ok"}
    assert "marco keys create" in refused(
        httpx.get(f"{api.address}x", timeout=60), 401, "invalid_api_key"
    )
    with api.http() as client:
        wrong = client.headers["Authorization"][:-1] + "~"
        for given in (wrong, "Bearer marco_" + "0" * 12 + "_" + "a" * 43, "Basic abc", "Bearer é"):
            head = {b"Authorization": given.encode()}
            answer = client.get("/v1/models", headers=head)
            refused(answer, 401, "invalid_api_key")
            assert answer.headers["WWW-Authenticate"] == "Bearer"
    with api.http(expires_in_s=1e-6) as client:
        refused(client.get("/v1/models"), 401, "invalid_api_key")


def test_a_key_has_a_rate_limit(api: Api) -> None:
    with api.http(per_minute=2) as client:
        answers = [client.get("/nowhere") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [404, 404, 429]
        assert "2 requests a minute" in refused(answers[2], 429, "rate_limit_exceeded")
        assert 0 < int(answers[2].headers["Retry-After"]) <= 30
        name = "x-ratelimit-{}-requests".format
        assert {answer.headers[name("limit")] for answer in answers} == {"2"}
        assert [answer.headers[name("remaining")] for answer in answers] == ["1", "0", "0"]
        assert 30 < float(answers[2].headers[name("reset")].removesuffix("s")) <= 60


def test_without_a_key_only_this_machine_gets_one(database_url: str, api: Api) -> None:
    env = api.env | {"DATABASE_URL": database_url}
    with serving(env, "--host", "0.0.0.0") as printed:
        port = printed["address"].rpartition(":")[2]
        answer = httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=60)
        assert "marco keys create" in refused(answer, 401, "invalid_api_key")
        assert "key" not in printed


def test_the_openai_client_gets_the_best_answers(api: Api, work: Work) -> None:
    with api.openai() as client:
        extra = {"marco": {"options": {"rollouts": 12, "early_stop": False}}}
        raw = client.chat.completions.with_raw_response.create(**ASKED, n=2, extra_body=extra)
        found = raw.parse()
        assert found._request_id.startswith("req_")
        assert raw.headers["Marco-Job-Id"] == found.id and found.model == "toy-marco-o1"
        first, second = found.choices
        assert first.message.role == "assistant" and first.finish_reason == "stop"
        assert first.marco["share"] >= second.marco["share"] and first.marco["votes"] >= 1
        assert first.marco["answer"] != second.marco["answer"] and 0 < first.marco["confidence"] < 1
        usage = found.usage
        assert 0 < usage.completion_tokens <= 1000
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        assert usage.prompt_tokens_details.cached_tokens >= 0
        tree = client.get(f"{api.address.rstrip('/')}{found.marco['tree']}", cast_to=object)
        assert tree["job"]["strategy"] == "step" and len(tree["nodes"]) > 2
        assert tree["job"]["subject"] == "What is 1 + 1?"
        with pytest.raises(openai.NotFoundError, match="marco-search, auto"):
            client.chat.completions.create(**ASKED | {"model": "gpt-4o"})
        with pytest.raises(openai.UnprocessableEntityError) as wrong:
            client.chat.completions.create(**ASKED | {"temperature": -1})
        assert wrong.value.param == "temperature"
        with pytest.raises(openai.UnprocessableEntityError, match="tools: not supported"):
            client.chat.completions.create(**ASKED, tools=[{"type": "function"}])
        idle: dict[str, Any] = {"tools": [], "tool_choice": "none", "parallel_tool_calls": False}
        idle |= {"stop": [], "top_logprobs": 0}
        assert client.chat.completions.create(**ASKED, **idle).choices[0].message.content
        for part in ({"type": "image_url", "text": "?"}, {"type": "text", "text": {"value": "?"}}):
            asked: Any = ASKED | {"messages": [{"role": "user", "content": [part]}]}
            with pytest.raises(openai.UnprocessableEntityError, match="parts of text only"):
                client.chat.completions.create(**asked)


def test_a_stream_tells_progress_and_then_the_answer(api: Api, work: Work) -> None:
    with api.openai() as client:
        stream = client.chat.completions.create(
            **ASKED, n=2, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
        assert {"state", "rounds", "job_id"} <= set(chunks[0].marco)
        assert len({chunk.id for chunk in chunks}) == 1 and chunks[-1].usage.completion_tokens > 0
        texts = [(c.choices[0].index, c.choices[0].delta.content) for c in chunks if c.choices]
        assert [index for index, text in texts if text] == [0, 1]
        with client.chat.completions.stream(**ASKED) as events:
            final = events.get_final_completion()
        assert final.choices[0].message.content and final.choices[0].finish_reason == "stop"


def test_the_example_runs(api: Api, work: Work) -> None:
    env = api.env | {"OPENAI_BASE_URL": f"{api.address}v1", "OPENAI_API_KEY": api.key()}
    command = [sys.executable, "examples/openai_client.py"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert "answer 1: " in done.stdout and done.stdout.endswith("tokens generated\n")


def test_a_key_of_the_caller_names_the_request(api: Api, work: Work) -> None:
    with api.openai() as client:
        head = {"Idempotency-Key": "order-1"}
        ids = {client.chat.completions.create(**ASKED, extra_headers=head).id for _ in range(2)}
        assert len(ids) == 1
        with pytest.raises(openai.ConflictError) as conflict:
            client.chat.completions.create(**ASKED, n=3, extra_headers=head)
        assert conflict.value.code == "idempotency_conflict"


def test_a_job_outlives_the_request(api: Api) -> None:
    """Nobody works: the client gives up, and finds its job under the same key."""
    with api.openai(tenant="patient") as client:
        asked = {**ASKED, "extra_headers": {"Idempotency-Key": "slow"}}
        hasty = client.with_options(timeout=3, max_retries=0)
        with pytest.raises(openai.APITimeoutError):
            hasty.chat.completions.create(**asked)
    with api.http(tenant="patient") as client:
        body = {"kind": "reasoning", "question": "Other?"}
        refused(client.post("jobs", json=body | {"idempotency_key": "slow"}), 409,
                "idempotency_conflict")  # fmt: skip
    listed = json.loads(api.marco("status", "--tenant", "patient", "--json").stdout)
    (job,) = listed["jobs"]
    assert job["state"] == "queued" and job["idempotency_key"] == "slow"
    api.marco("cancel", job["job_id"], "--tenant", "patient")
    with api.openai(tenant="patient") as client:
        with pytest.raises(openai.InternalServerError, match="job cancelled") as failed:
            client.chat.completions.create(**asked)
        assert failed.value.response.headers["X-Should-Retry"] == "false"
        told = list[str]()
        with pytest.raises(openai.APIError, match="job cancelled"):
            told += (chunk.id for chunk in client.chat.completions.create(**asked, stream=True))


def test_a_request_ends_with_its_client_or_its_time_and_the_job_goes_on(api: Api) -> None:
    settings = settings_for(api.env["DATABASE_URL"], api.env["REDIS_URL"])
    head = {"Authorization": "Bearer k", "Content-Type": "application/json"}
    body, sent = json.dumps(ASKED).encode(), list[Any]()

    async def hang_up(app: ASGIApp) -> None:
        messages = iter([{"type": "http.request", "body": body}, {"type": "http.disconnect"}])
        raw = [(name.lower().encode(), value.encode()) for name, value in head.items()]
        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": raw}

        async def receive() -> Any:
            return next(messages)

        async def send(message: Any) -> None:
            sent.append(message)

        await app(scope | {"query_string": b""}, receive, send)

    with (
        open_database(api.env["DATABASE_URL"]) as database,
        closing(Producer(settings=settings, tenant=settings.tenant)) as producer,
    ):
        for wait_s in (3600.0, 0.01):
            given = settings.model_copy(update={"api_wait_s": wait_s})
            service = Service(given, database, AsyncProducer(settings=given), local_key="k")
            app = create_app(service)
            if wait_s > 1:
                asyncio.run(hang_up(app))
                assert sent[0]["status"] == 499
            else:
                answer: Any = TestClient(app).post(
                    "/v1/chat/completions", content=body, headers=head
                )
                said = refused(answer, 504, "wait_timeout")
                assert "GET /jobs/" in said and answer.headers["X-Should-Retry"] == "false"
            asyncio.run(service.producer.close())
        assert {str(state) for state in producer.cancel_all().values()} == {"cancelled"}


def test_a_server_that_stops_says_to_all_who_wait_that_their_jobs_go_on(api: Api) -> None:
    """And waits for none of them: nobody works on the jobs here."""
    headers = {"Authorization": f"Bearer {api.key(tenant='waiting')}"}
    with serving(api.env) as printed, httpx.Client(headers=headers, timeout=60) as client:
        v1 = f"{printed['address']}v1/chat/completions"
        with (
            ThreadPoolExecutor() as pool,
            client.stream("POST", v1, json=ASKED | {"stream": True}) as stream,
        ):
            job = stream.headers["Marco-Job-Id"]
            path = f"{printed['address']}jobs/{job}/events"
            with client.stream("GET", path) as events:
                lines = events.iter_lines()
                assert next(lines) == "event: status"
                whole = pool.submit(client.post, v1, json=ASKED)
                listed = f"{printed['address']}jobs"
                wait_until(lambda: len(client.get(listed).json()["data"]) == 2, "both jobs")
                os.kill(int(printed["pid"]), signal.SIGTERM)
                assert "event: result" not in list(lines)  # whole, not cut off
            told = [line for line in stream.iter_lines() if line]
            assert "wait_timeout" in told[-2] and told[-1] == "data: [DONE]"
            assert "GET /jobs/" in refused(whole.result(), 504, "wait_timeout")
    status = json.loads(api.marco("status", "--tenant", "waiting", "--json").stdout)
    assert status["counts"] == {"queued": 2}


def test_head_is_answered_as_get_without_its_body(api: Api) -> None:
    with api.http() as client:
        for path in ("healthz", "v1/models", "jobs"):
            found, there = client.head(path), client.get(path)
            assert (found.status_code, found.content) == (200, b"")
            assert found.headers["Content-Length"] == str(len(there.content))
        client.headers.pop("Authorization")
        assert client.head("jobs").status_code == 401


def test_models_are_strategies_and_profiles(api: Api) -> None:
    with api.openai() as client:
        names = [model.id for model in client.models.list()]
        assert {"marco-search", "tree", "marco-o1"} <= set(names)
        assert client.models.retrieve("tree:pocket").id == "tree:pocket"
        for wrong in ("tree:step", "tree:", "x"):
            with pytest.raises(openai.NotFoundError):
                client.models.retrieve(wrong)


def test_jobs_over_http(api: Api, work: Work) -> None:
    with api.http() as client, api.http(tenant="other") as stranger:
        span = "00-0000000000000000000000000000002a-0000000000000007-01"
        asked = {"kind": "reasoning", "question": "What is 2 + 2?"}
        made = client.post("jobs", json=asked, headers={"traceparent": span})
        job = made.json()["job_id"]
        with api.database.transaction() as conn:
            of = "SELECT detail ->> 'traceparent' FROM audit_log WHERE job_id = %s LIMIT 1"
            assert conn.execute(of, [job]).fetchone() == (span,)
        assert made.status_code == 202 and made.headers["Location"] == f"/jobs/{job}"
        with client.stream("GET", f"jobs/{job}/events") as events:
            lines = list(events.iter_lines())
        names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
        assert names[-2:] == ["status", "result"] and '"state": "succeeded"' in lines[-2]
        found = client.get(f"jobs/{job}/result").json()
        assert found["answers"][0]["rank"] == 1 and found["job_id"] == job
        assert client.get(f"jobs/{job}").json()["state"] == "succeeded"
        assert client.post(f"jobs/{job}/cancel").json()["state"] == "succeeded"
        more = [client.post("jobs", json=asked).json()["job_id"] for _ in range(2)]
        page = client.get("jobs", params={"limit": 2}).json()
        assert [one["job_id"] for one in page["data"]] == more[::-1] and page["has_more"]
        rest = client.get("jobs", params={"after": page["last_id"], "state": "succeeded"}).json()
        assert rest["first_id"] == job and "cancelled" not in {x["state"] for x in rest["data"]}
        none = {"object": "list", "data": [], "has_more": False}
        assert client.get("jobs", params={"batch_id": f"batch_{'0' * 32}"}).json() == none
        assert stranger.get("jobs").json() == none
        refused(client.get("jobs", params={"state": "done"}), 422, "invalid_job")
        for path in ("", "/result", "/tree", "/events"):
            refused(stranger.get(f"jobs/{job}{path}"), 404, "job_not_found")
        refused(stranger.post(f"jobs/{job}/cancel"), 404, "job_not_found")


def test_what_a_completion_asks_for_wrongly_is_named_as_it_asked(api: Api, work: Work) -> None:
    def asked(**own: Any) -> httpx.Response:
        return client.post("v1/chat/completions", json=ASKED | {"marco": own})

    with api.http() as client:
        unknown = asked(options={"profile": "nope"})  # which only a worker can tell
        assert "no profile 'nope'" in refused(unknown, 400, "input_error")
        assert unknown.headers["X-Should-Retry"] == "false"
        for options, said in (
            ({"verifier": "nope"}, "no verifier 'nope'; known: none"),
            ({"reward": "prm-min"}, "MARCO_REWARD_URL: not set"),
            ({"overrides": {"reward": "prm-min"}}, "MARCO_REWARD_URL: not set"),
        ):
            assert said in refused(asked(options=options), 400, "input_error")
        foreign = asked(tenant="other")
        assert "marco.tenant: " in refused(foreign, 422, "invalid_job")
        assert foreign.json()["error"]["param"] == "marco.tenant"


def test_what_the_operator_set_up_wrongly_is_not_the_callers_fault(
    api: Api, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = settings_module.load().model_copy(update={"overrides": {"reward": "prm-min"}})
    monkeypatch.setattr(settings_module, "load", lambda: given)
    with api.http() as client:
        done = client.post("v1/chat/completions", json=ASKED)
        assert "MARCO_REWARD_URL: not set" in refused(done, 500, "job_failed")


def test_what_is_refused(api: Api) -> None:
    with api.http() as client:
        refused(client.get("jobs/x"), 404, "job_not_found")
        refused(client.put("jobs"), 405, "method_not_allowed")
        said = refused(client.post("jobs", content=b"{}"), 422, "invalid_job")
        assert "Content-Type: application/json" in said
        client.headers["Content-Type"] = "application/json"
        refused(client.post("jobs", content=b"{"), 400, "input_error")
        refused(client.post("jobs", content=b"[" * 100_000), 400, "bad_request")
        zipped = client.post("jobs", content=gzip.compress(b"{}"))
        assert "must be JSON in UTF-8, not compressed" in refused(zipped, 400, "bad_request")
        for path in ("jobs", "v1/chat/completions", "v1/batches"):
            twice = client.post(path, content=b'{"question": "1?", "question": "2?"}')
            assert refused(twice, 422, "invalid_job") == "question: given twice in one object"
        refused(client.post("jobs", json=[]), 422, "invalid_job")
        said = refused(client.get("jobs", params={"limit": -1}), 422, "invalid_job")
        assert "must be at least 1, not" in said
        window = {"input_file_id": "file-1", "endpoint": "/v1/chat/completions"}
        window |= {"completion_window": "a day"}
        assert "not 'a day'" in refused(client.post("v1/batches", json=window), 422, "invalid_job")
        odd = client.post("v1/chat/completions", content=json.dumps(ASKED | {"\ud800": 1}))
        assert "\\ud800: not supported" in refused(odd, 422, "invalid_job")
        refused(client.post("jobs", json={"kind": "reasoning"}), 422, "invalid_job")
        wrong = {"kind": "reasoning", "question": "?", "tenant": "other"}
        assert "'acme'" in refused(client.post("jobs", json=wrong), 422, "invalid_job")
        refused(client.post("jobs", json={"question": "x" * 5_000_000}), 413, "body_too_large")
        refused(client.post("jobs", content=iter([b"x" * 5_000_000])), 413, "body_too_large")
        job = client.post("jobs", json={"kind": "reasoning", "question": "1?"}).json()["job_id"]
        refused(client.get(f"jobs/{job}/result"), 404, "job_not_found")
        assert client.post(f"jobs/{job}/cancel").json()["state"] == "cancelled"
    with api.http(rights=["read"]) as client:
        refused(client.post("jobs", json={}), 403, "rights_missing")
        refused(client.post(f"jobs/{job}/cancel"), 403, "rights_missing")
        refused(client.post("v1/chat/completions", json=ASKED), 403, "rights_missing")
    api.marco("quota", "small", "1")
    with api.http(tenant="small") as client:
        answers = [client.post("jobs", json=wrong | {"tenant": "small"}) for _ in range(2)]
        refused(answers[1], 429, "quota_exceeded")
        assert answers[0].status_code == 202 and int(answers[1].headers["Retry-After"]) > 0


def test_its_description_is_complete(api: Api) -> None:
    page = httpx.get(f"{api.address}openapi.json", timeout=60).json()
    assert {"/v1/chat/completions", "/v1/models", "/jobs/{job_id}/events"} <= set(page["paths"])
    assert "What is 17 x 23?" in httpx.get(f"{api.address}docs", timeout=60).text


def test_where_the_services_are_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    url = "postgresql://marco:secret@127.0.0.1:1/hidden"
    settings = settings_for(url, "redis://127.0.0.1:1/0")
    with open_database(url) as database:
        service = Service(settings, database, AsyncProducer(settings=settings))
        client = TestClient(
            create_app(service), headers={"Authorization": f"Bearer {new_key()[0]}"}
        )
        for path in ("/healthz", "/jobs"):
            answer: Any = client.get(path)
            said = refused(answer, 503, "database_unavailable")
            assert (
                "hidden" not in said and "hidden" in caplog.text and answer.headers["Retry-After"]
            )
        (told,) = asyncio.run(_events(service, str(UUID(int=1))))
        assert b"event: error" in told and b"database_unavailable" in told
        assert b"hidden" not in told


async def _events(service: Service, job_id: str) -> list[bytes]:
    """A stream of a job's events, once its head has been sent. Closes the producer."""
    key = ApiKey(
        id="k", name="", tenant="acme", rights=RIGHTS, per_minute=None,
        created_at=None, expires_at=None, revoked_at=None,
    )  # fmt: skip
    async with service.producer:
        caller = Caller(service, key, service.producer.for_tenant("acme"))
        return [part async for part in job_routes.parts(caller, job_id)]


def test_an_answer_is_not_held_back_for_an_acknowledgement() -> None:
    with (
        closing(bound("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname()),
        closing(listening.accept()[0]) as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
