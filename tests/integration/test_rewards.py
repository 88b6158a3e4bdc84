"""A stored search is verified under the reward that led it, whichever it was."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from marco_search import settings
from marco_search.search.rewards import EXTERNAL, REWARDS
from marco_search.search.tree import Tree
from marco_search.store.db import Database
from marco_search.store.reads import queries
from marco_search.store.seal.verification import verify_job
from marco_search.store.trail import trail
from tests.integration.test_worker import worker
from tests.integration.toys import (
    Interrupted,
    insert,
    marco,
    open_database,
    question,
    run_job,
    runner,
    settings_for,
    wait_until,
)
from tests.toy import ToyRuntime
from worker.shutdown import Shutdown


def searched(database: Database, url: str, reward: str) -> UUID:
    options = {"reward": reward, "reflection": "branch"}
    (stored,) = insert(database, question(options=options))
    given = settings_for(url, "redis://127.0.0.1:1/0")
    runner(given, database, ToyRuntime(failing=0.1)).run_next()
    return stored.id


def test_every_reward_is_computed_again(database_url: str) -> None:
    with open_database(database_url) as database:
        for reward in REWARDS.keys() - EXTERNAL:
            report = verify_job(database, searched(database, database_url, reward))
            assert report.findings == (), reward


def test_a_value_that_does_not_follow_from_the_tokens_is_found(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_database(database_url) as database:
        job_id = searched(database, database_url, "minimum")
        monkeypatch.setitem(REWARDS, "minimum", lambda rollout: max(rollout.c))
        found = verify_job(database, job_id).findings
    assert {f.what for f in found} == {"value"}


# -- rewards from outside, through the queue --------------------------------------------------


JUDGE = """
import json, sys
given = json.load(sys.stdin)
with open(sys.argv[1], "a") as asked:
    asked.write(given["answer"] + "\\n")
print({"1": "reject", "2": "0.5", "3": "0.25"}[given["answer"]])
"""


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The answers that the verifier "judge" was asked about."""
    file = tmp_path / "asked"
    file.touch()
    judge = {"judge": [sys.executable, "-c", JUDGE, str(file)]}
    monkeypatch.setenv("MARCO_VERIFIERS", json.dumps(judge))
    settings.load.cache_clear()
    yield file
    settings.load.cache_clear()


def die() -> None:
    raise KeyboardInterrupt


def test_what_was_verified_is_stored_and_not_asked_again(database_url: str, asked: Path) -> None:
    """Also by the worker that goes on from the first one's rounds."""
    given = settings_for(database_url, "redis://127.0.0.1:1/0")
    with open_database(database_url) as database:
        job = question(options={"verifier": "judge", "rollouts": 24})
        (stored,) = insert(database, job)
        with pytest.raises(KeyboardInterrupt):
            runner(given, database, Interrupted(2, die)).run_next()
        before = asked.read_text().split()
        with database.transaction() as conn:
            conn.execute("UPDATE jobs SET lease_expires_at = now()")
        run_job(runner(given, database, ToyRuntime(), "another"), database, stored.id)
        assert before, "the first worker had asked"
        assert sorted(asked.read_text().split()) == ["1", "2", "3"], "each answer once"
        with database.transaction() as conn:
            tree = Tree.restore(*trail.load(conn, stored.id))
            (result,) = queries.results(conn, [stored.id])
        said = {"1": (0.0,), "2": (0.5,), "3": (0.25,), None: None}
        assert [r.scores for r in tree.rollouts] == [said[r.answer] for r in tree.rollouts]
        assert [a.text for a in result.answers] == ["2", "3"]
        rejected = sum(r.answer == "1" for r in tree.rollouts)
        assert (result.reward, result.verifier, result.shortfalls.rejected) == (
            "verifier",
            "judge",
            rejected,
        )
        report = verify_job(database, stored.id)
        assert report.findings == ()
        assert report.external == sum(r.answer is not None for r in tree.rollouts)


@pytest.mark.parametrize("address", [False, True])
def test_a_search_that_is_to_stop_does_not_wait_for_a_verdict(
    database_url: str, monkeypatch: pytest.MonkeyPatch, address: bool, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        open_database(database_url) as database,
        ThreadPoolExecutor() as threads,
        ExitStack() as stack,
    ):
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        command = ["sh", "-c", f"touch {begun}; exec sleep 1000"]
        verifiers = {"silent": url if address else command}
        monkeypatch.setenv("MARCO_VERIFIERS", json.dumps(verifiers))
        monkeypatch.setenv("MARCO_VERIFIER_TIMEOUT_S", "90")
        settings.load.cache_clear()
        insert(database, question(options={"verifier": "silent"}))
        shutdown, given = Shutdown(), settings_for(database_url, "redis://127.0.0.1:1/0")
        one = runner(given, database, ToyRuntime(), shutdown=shutdown)
        running = threads.submit(one.run_next)
        if address:
            taken, _ = silent.accept()
            stack.enter_context(taken)
        else:
            wait_until(begun.exists, "it is asked")
        shutdown.request(0.0)
        running.result(60)
        with database.transaction() as conn:
            row = conn.execute("SELECT state, failures, losses, rounds FROM jobs").fetchone()
    settings.load.cache_clear()
    assert row == ("queued", 0, 0, 0), "it is given back, and nothing without a score is kept"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("scores = ARRAY[1.0]", "value"),
        ("scores = ARRAY[0.5, 7]", "scores"),
        ("scores = NULL", "value"),
        ("value = 1", "value"),
    ],
)
def test_what_was_said_can_not_be_changed_unnoticed(
    database_url: str, asked: Path, change: str, what: str
) -> None:
    given = settings_for(database_url, "redis://127.0.0.1:1/0")
    with open_database(database_url) as database:
        (stored,) = insert(database, question(options={"verifier": "judge"}))
        runner(given, database, ToyRuntime()).run_next()
        with psycopg.connect(database_url) as conn:
            conn.execute("SET session_replication_role = replica")
            conn.execute(f"UPDATE rollouts SET {change} WHERE answer = '2'")  # noqa: S608
        found = verify_job(database, stored.id).findings
        assert {"the rollout was changed", what} <= {f.what for f in found}


def test_an_unknown_verifier_fails_the_job_before_anything_is_generated(
    database_url: str, asked: Path
) -> None:
    given = settings_for(database_url, "redis://127.0.0.1:1/0")
    with open_database(database_url) as database:
        (stored,) = insert(database, question(options={"verifier": "rm -rf /"}))
        runner(given, database, ToyRuntime()).run_next()
        with database.transaction() as conn:
            (result,) = queries.results(conn, [stored.id])
    assert (result.state, result.rollouts) == ("failed", 0)
    assert result.error == "MARCO_VERIFIERS: no verifier 'rm -rf /'; known: judge"


def test_the_command_line_names_a_verifier_and_shows_what_it_said(
    database_url: str, redis_url: str, asked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", redis_url)
    sent = marco(database_url, "submit", "--question", "1 + 1?", "--verifier", "judge", "--json")
    (job_id,) = json.loads(sent.stdout)["ids"]
    with worker(database_url, redis_url):
        assert marco(database_url, "wait", job_id, "--timeout", "100").returncode == 0
    shown = json.loads(marco(database_url, "show", job_id, "--json").stdout)["result"]
    assert [answer["text"] for answer in shown["answers"]] == ["2", "3"]
    assert (shown["reward"], shown["verifier"]) == ("verifier", "judge")
    assert "weighted by verifier" in marco(database_url, "show", job_id).stdout
    assert "in 0 to 1, not recomputed" in marco(database_url, "verify", job_id).stdout
    query = "SELECT DISTINCT answer, scores FROM audit.rollouts WHERE scores IS NOT NULL ORDER BY 1"
    rows = json.loads(marco(database_url, "sql", query, "--json").stdout)
    assert rows[0] == {"answer": "1", "scores": [0.0]}
    refused = marco(
        database_url, "submit", "--question", "x", "--verifier", "a", "--reward", "tail"
    )
    assert (refused.returncode, "leave reward out" in refused.stderr) == (2, True)
