"""`marco serve` as its users call it: with OpenAI's own client, and with plain HTTP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from marco_search.local import ServiceUrls
from marco_search.store import api_keys
from marco_search.store.db import Database
from tests.databases import scratch_database
from tests.integration.conftest import with_path
from tests.integration.toys import open_database, runner, settings_for
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
        yield json.loads(process.stdout.readline())
    finally:
        process.terminate()
        assert process.wait(60) == 0


@pytest.fixture(scope="module")
def api(services: ServiceUrls, template_database: str) -> Iterator[Api]:
    template = with_path(services.database_url, template_database)
    with scratch_database(services.database_url, template=template) as url:
        env = {**os.environ, "DATABASE_URL": url, "REDIS_URL": services.redis_url}
        env |= {"PYTHONPATH": str(Path.cwd()), "MARCO_API_WAIT_S": "60"}
        with serving(env) as printed, closing(Database(url, application="test")) as database:
            assert printed["key"].startswith("marco_")  # there was none before
            yield Api(printed["address"], database, env)


@pytest.fixture
def work(api: Api, services: ServiceUrls) -> Iterator[Callable[[], None]]:
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


def refused(answer: httpx.Response, status: int, code: str) -> str:
    """The message of an error in OpenAI's shape."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == code and set(error) == {"message", "type", "param", "code"}
    return str(error["message"])


def test_keys_are_made_listed_and_revoked(api: Api) -> None:
    made = api.marco("keys", "create", "--tenant", "acme", "--name", "cron", "--right", "read")
    key = made.stdout.strip()
    assert "shown this once" in made.stderr
    listed = json.loads(api.marco("keys", "list", "--tenant", "acme", "--json").stdout)["keys"][0]
    assert listed["rights"] == ["read"] and listed["id"] in key and key not in str(listed)
    with api.database.transaction() as conn:
        assert key not in str(conn.execute("SELECT * FROM api_keys").fetchall())
    head = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=api.address, headers=head) as client:
        assert client.get("/nowhere").status_code == 404
        assert "revoked" in api.marco("keys", "revoke", listed["id"], "--tenant", "acme").stdout
        assert "was revoked" in refused(client.get("/nowhere"), 401, "invalid_api_key")
    assert api.marco("keys", "revoke", "0123", "--tenant", "acme").returncode == 3


def test_who_is_not_let_in(api: Api) -> None:
    assert httpx.get(f"{api.address}healthz").json() == {"status": "ok"}
    assert "marco keys create" in refused(httpx.get(f"{api.address}x"), 401, "invalid_api_key")
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
        assert [client.get("/nowhere").status_code for _ in range(2)] == [404, 404]
        answer = client.get("/nowhere")
        assert "2 requests a minute" in refused(answer, 429, "rate_limit_exceeded")
        assert 0 < int(answer.headers["Retry-After"]) <= 30


def test_without_a_key_only_this_machine_gets_one(
    services: ServiceUrls, template_database: str, api: Api
) -> None:
    template = with_path(services.database_url, template_database)
    with (
        scratch_database(services.database_url, template=template) as url,
        serving(api.env | {"DATABASE_URL": url}, "--host", "0.0.0.0") as printed,
    ):
        port = printed["address"].rpartition(":")[2]
        answer = httpx.get(f"http://127.0.0.1:{port}/v1/models")
        assert "marco keys create" in refused(answer, 401, "invalid_api_key")
        assert "key" not in printed
