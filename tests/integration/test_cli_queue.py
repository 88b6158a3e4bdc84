"""What an operator does at the command line: limits, pauses, deadlines, dead letters."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from marco_search import settings
from ops.cli.main import main
from producer import Producer

Marco = Callable[..., Any]


@pytest.fixture
def marco(
    database_url: str,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Marco]:
    """Runs a command with --json; what it printed, and its exit code if that is not as given."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("MARCO_MAX_QUEUED", "2")
    settings.load.cache_clear()

    def run(*words: str, code: int = 0) -> Any:
        assert main([*words, "--json"]) == code
        said = capsys.readouterr()
        return json.loads(said.err if code else said.out)

    yield run
    settings.load.cache_clear()


def test_a_full_queue_has_an_exit_code_and_a_hint(marco: Marco) -> None:
    for _ in range(2):
        marco("submit", "--question", "1 + 1?")
    error = marco("submit", "--question", "1 + 1?", code=8)["error"]
    assert (error["type"], error["retry_after_s"]) == ("QueueFull", 5.0)
    marco("pause", "--all")
    marco("resume", "--all")
    assert marco("quota", "default", "1") == {"tenant": "default", "max_queued": 1}


def test_terms_pauses_and_dead_letters(
    marco: Marco, database_url: str, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    terms = ("--priority", "high", "--expires-in", "3600")
    (one,) = marco("submit", "--question", "1 + 1?", *terms)["ids"]
    (status,) = marco("status", one)["jobs"]
    assert (status["priority"], status["paused_at"]) == (0, None)
    assert status["expires_at"] > status["created_at"]
    marco("submit", "--question", "1 + 1?", "--deadline", "2030-01-31", code=2)
    assert marco("pause", one)["jobs"] == [{"job_id": one, "state": "queued"}]
    (status,) = marco("status", one)["jobs"]
    assert status["paused_at"]
    assert main(["status", one]) == 0
    assert "paused" in capsys.readouterr().out
    marco("resume", one)
    assert marco("status", one)["jobs"][0]["paused_at"] is None
    for whom in (["--tenant", "default"], ["--all"]):
        marco("pause", *whom)
        assert marco("status", one)["jobs"][0]["paused_at"], whom
        marco("resume", *whom)
    assert marco("dead", "list")["jobs"] == []
    marco("dead", "show", one, code=3)
    with Producer(database_url, redis_url) as producer, producer.database.transaction() as conn:
        conn.execute(
            "UPDATE jobs SET state = 'failed', finished_at = now(), last_error ="
            """ '{"type": "KeyError", "message": "x", "traceback": "File a\\n  b()"}'"""
        )
    (letter,) = marco("dead", "list", "--error", "KeyError")["jobs"]
    assert (letter["job_id"], letter["state"]) == (one, "failed")
    assert main(["dead", "show", one]) == 0
    shown = capsys.readouterr().out
    assert "KeyError: x" in shown
    assert "\n  b()" in shown
    assert main(["dead", "list"]) == 0
    assert "KeyError" in capsys.readouterr().out
    assert marco("dead", "requeue", "--all", "--state", "dead")["requeued"] == []
    assert marco("dead", "requeue", "--all")["requeued"] == [one]
    assert marco("status", one)["jobs"][0]["state"] == "queued"
