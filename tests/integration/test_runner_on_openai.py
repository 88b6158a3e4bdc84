"""A whole job on OpenAI-compatible servers of the pocket model: queue, trail, verify, replay."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from marco_search.errors import MarcoError
from marco_search.runtime import open_runtime
from marco_search.runtime.servers.openai_answers import TEXT_IDS
from marco_search.settings import Settings
from marco_search.store.db import Database
from tests.integration.runtime.openai_server import Pocket, as_server, ends_at_once
from tests.integration.runtime.sglang_server import Server, runtime, serving
from tests.integration.toys import insert, question, runner, settings_for

MARCO = Path(sys.executable).with_name("marco")
ASKED = question(
    "Tom has 3 apples. Tom buys 5 more apples. How many apples does Tom have?",
    options={"strategy": "tree", "rollouts": 8, "seed": 3, "early_stop": False},
)


@pytest.fixture(scope="module")
def pocket() -> Iterator[Pocket]:
    with closing(Pocket()) as model:
        yield model


@pytest.fixture
def settings(database_url: str) -> Settings:
    return settings_for(database_url, "redis://127.0.0.1:1/0", heartbeat_s=0.05, lease_s=20)


def searched(settings: Settings, database: Database, opened: Any) -> tuple[str, list[Any]]:
    """(job, of its rollouts seed, finish, forced candidate and answer, of its nodes the tokens)."""
    (job,) = insert(database, ASKED)
    runner(settings, database, opened).run_next()
    with database.transaction() as conn:
        rollouts = conn.execute(
            "SELECT seed, finish, forced, answer FROM rollouts WHERE job_id = %s"
            " ORDER BY rollout_id",
            [job.id],
        ).fetchall()
        nodes = conn.execute(
            "SELECT text, token_ids FROM nodes WHERE job_id = %s ORDER BY node_id", [job.id]
        ).fetchall()
    return str(job.id), [*rollouts, *nodes]


def marco(server: Server, url: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [MARCO, *words],
        env=os.environ | {"DATABASE_URL": url, "MARCO_RUNTIME": server.url},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("shape", ["llama.cpp", "llama-cpp-python"])
def test_a_job_is_searched_verified_and_replayed(
    settings: Settings, database: Database, database_url: str, pocket: Pocket, shape: str
) -> None:
    with serving(make=as_server(shape, pocket)) as server:
        with runtime(server) as opened:
            job, found = searched(settings, database, opened)
        rollouts = found[:8]
        assert {finish for _, finish, *_ in rollouts} <= {"stop", "length"}
        assert any(forced is not None for _, _, forced, _ in rollouts)
        assert any(answer == "8" for *_, answer in rollouts)
        checked = marco(server, database_url, "verify", job, "--json")
        assert checked.returncode == 0, checked.stdout
        again = marco(server, database_url, "replay", job)
        said = again.stdout
        assert again.returncode == 0, said + again.stderr
        assert "This server does not support: the same bits again" in said
        assert ("does not report its revision" in said) == (shape == "llama-cpp-python")
    ids = [i for _, tokens in found[8:] for i in tokens or ()]
    assert (min(ids) >= TEXT_IDS) == (shape == "llama-cpp-python")
    with database.transaction() as conn:
        (engine,) = conn.execute("SELECT runtime FROM attempts").fetchone() or ("",)
        unknown = conn.execute("SELECT count(*) FROM vocabulary").fetchone()
    assert engine == "openai"
    assert unknown is not None
    assert unknown[0] > 50


def test_a_turn_that_ends_at_once_does_not_kill_its_job(
    settings: Settings, database: Database, database_url: str, pocket: Pocket
) -> None:
    """Of a server that does not send the token that ends a turn. Alone in its round, too."""

    def complete(body: dict[str, Any]) -> dict[str, Any]:
        forked = body["text"].partition("<Thought>")[2].strip()
        return ends_at_once(body) if forked else pocket.complete(body)

    def prepare(server: Server) -> None:
        server.complete = complete

    with serving(prepare=prepare, make=as_server("llama-cpp-python", pocket)) as server:
        with runtime(server) as opened:
            job, found = searched(settings, database, opened)
        checked = marco(server, database_url, "verify", job, "--json")
        assert checked.returncode == 0, checked.stdout
        again = marco(server, database_url, "replay", job)
        assert again.returncode == 0, again.stdout + again.stderr
    assert {finish for _, finish, *_ in found[:8]} == {"stop"}
    assert any(forced is not None for _, _, forced, _ in found[:8])
    assert any(answer == "8" for *_, answer in found[:8])


def test_with_token_ids_the_tree_is_that_of_the_embedded_engine(
    settings: Settings, database: Database, pocket: Pocket
) -> None:
    with serving(make=as_server("vllm", pocket)) as server, runtime(server) as opened:
        _, found = searched(settings, database, opened)
    with closing(open_runtime(Settings())) as embedded:
        _, wanted = searched(settings, database, embedded)
    assert found == wanted


def test_doctor_says_what_a_server_can_not_do(database_url: str, pocket: Pocket) -> None:
    with serving(make=as_server("tgi", pocket)) as server:
        said = marco(server, database_url, "doctor").stdout
    assert "toy-marco-o1 on openai tgi 3.3.4, prefixes as text, 512 tokens" in " ".join(
        said.split()
    )
    assert "counts of prompt tokens" in " ".join(said.split())


def test_a_refused_server_does_not_become_a_failed_job(settings: Settings) -> None:
    refused = settings.model_copy(update={"runtime": "openai+http://127.0.0.1:9/v1"})
    with pytest.raises(MarcoError, match="can't be reached"):
        open_runtime(refused)
