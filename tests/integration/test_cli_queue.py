"""What an operator does at the command line: limits, pauses, deadlines, dead letters."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from marco_search import settings
from marco_search.cli.main import main
from marco_search.settings import Settings
from marco_search.store.reads import queries
from producer import Producer
from tests.integration.toys import question

Marco = Callable[..., Any]


@pytest.fixture
def marco(
    command_line: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Marco:
    """Runs a command with --json; what it printed, and its exit code if that is not as given."""
    monkeypatch.setenv("MARCO_MAX_QUEUED", "2")

    def run(*words: str, code: int = 0) -> Any:
        assert main([*words, "--json"]) == code
        printed = capsys.readouterr()
        return json.loads(printed.err if code else printed.out)

    return run


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
    assert main(["results", one]) == 0
    assert capsys.readouterr().out == "No results: none of these jobs has ended.\n"
    marco("resume", one)
    assert marco("status", one)["jobs"][0]["paused_at"] is None
    for whom in (["--tenant", "default"], ["--all"]):
        marco("pause", *whom)
        assert marco("status", one)["jobs"][0]["paused_at"], whom
        marco("resume", *whom)
    assert marco("dead", "list")["jobs"] == []
    marco("dead", "show", one, code=3)
    with Producer(database_url, redis_url) as producer, producer._database.transaction() as conn:
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
    with Producer(database_url, redis_url) as producer, producer._database.transaction() as conn:
        conn.execute("UPDATE jobs SET state = 'dead', finished_at = now(), redacted_at = now()")
    assert marco("dead", "requeue", "--all") == {"requeued": []}, "and it ends"
    assert marco("dead", "requeue", "--all", "--restart") == {"restarted": {}}
    assert [letter["job_id"] for letter in marco("dead", "list")["jobs"]] == [one]


def test_pauses_and_quotas_are_listed(marco: Marco, capsys: pytest.CaptureFixture[str]) -> None:
    assert marco("pause", "--list") == {"paused": []}
    (one,) = marco("submit", "--question", "1 + 1?")["ids"]
    marco("pause", one)
    marco("pause", "--tenant", "research")
    marco("pause", "--all")
    everyone, default, research = marco("pause", "--list")["paused"]
    assert (everyone["tenant"], research["tenant"]) == (None, "research")
    assert everyone["paused_at"] and research["paused_at"]
    assert default == {"tenant": "default", "paused_at": None, "jobs": 1}
    assert main(["pause", "--list"]) == 0
    assert "tenant default: 1 job by id" in capsys.readouterr().out
    marco("pause", "--list", "--all", code=2)

    assert marco("quota") == {"quotas": {}, "default": None}
    marco("quota", "research", "7")
    assert marco("quota")["quotas"] == marco("quota", "research")["quotas"] == {"research": 7}
    assert marco("quota", "default")["quotas"] == {}
    assert main(["quota"]) == 0
    assert "research: 7\nothers: no quota" in capsys.readouterr().out


def test_arguments_that_nothing_takes_are_refused(marco: Marco) -> None:
    for words in (
        ("status", "--limit", "99999999999999999999"),
        ("dead", "list", "--limit", "2147483648"),
        ("sql", "select 1", "--limit", "99999999999999999999"),
        ("sql", "select 1", "--timeout", "nan"),
        ("wait", "--timeout", "nan"),
        ("watch", "--timeout", "inf"),
        ("quota", "research", "2147483648"),
        ("quota", "", "1"),
        ("pause", "--tenant", ""),
        ("resume", "--tenant", ""),
        ("pause", "--tenant", "\udcff"),
        ("sql", "--set", "a=\udcff", "select :'a'"),
        ("status", "\udcff"),
    ):
        marco(*words, code=2)


def test_jobs_that_were_known_are_counted_and_refused_ones_have_lines(
    marco: Marco, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "jobs.jsonl"
    job = {"kind": "open_ended", "prompt": "Go on.", "idempotency_key": "one"}
    file.write_text(json.dumps(job))
    for note in ("1 new, 0 known", "0 new, 1 known"):
        assert main(["submit", str(file)]) == 0
        assert note in capsys.readouterr().err
    lines = [{**job, "idempotency_key": "two"}, {**job, "prompt": "Stop."}]
    file.write_text("\n\n".join(map(json.dumps, lines)))
    error = marco("submit", str(file), code=2)["error"]
    assert error["type"] == "IdempotencyConflict"
    assert "line 3, idempotency_key: 'one'" in error["message"]
    late = {"kind": "open_ended", "prompt": "Go.", "deadline": "2020-01-01T00:00:00Z"}
    file.write_text("\n".join(map(json.dumps, (job, late))))
    (bad,) = marco("submit", str(file), code=2)["error"]["errors"]
    assert (bad["line"], bad["field"]) == (2, "deadline")
    assert "has passed" in bad["reason"]
    assert marco("status")["counts"] == {"queued": 1}


def test_many_ids_are_looked_up_at_once(
    marco: Marco, database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Producer(database_url, redis_url, settings=Settings(MARCO_MAX_QUEUED=None)) as producer:
        job = {"kind": "open_ended", "prompt": "Go on."}
        ids = [str(handle.id) for handle in producer.submit_many([job] * 3000)]
        statements = []
        with producer._database.transaction() as conn:
            execute = conn.execute
            monkeypatch.setattr(
                conn, "execute", lambda *given: statements.append(given) or execute(*given)
            )
            for words in (ids, [i[-12:] for i in ids], [i.replace("-", "") for i in ids]):
                assert list(map(str, queries.find_jobs(conn, words, "default"))) == ids
            assert len(statements) <= 3 * 3
            one = {"parts": ["x"], "first": ids[:1], "last": ids[:1], "tenant": "default"}
            plan = conn.execute("EXPLAIN " + queries.BEGINNINGS, one)
            assert "Index" in str(plan.fetchall())
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(ids)))
    assert [job["job_id"] for job in marco("status", "-")["jobs"]] == ids
    for state, count in (("queued", 1), ("running", 0)):
        assert len(marco("status", ids[0], "--state", state)["jobs"]) == count
    marco("status", ids[0], "0" * 32, code=3)
    marco("status", ids[0][:4], code=2)
    assert marco("status", ids[0], ids[0][-12:])["jobs"][1]["job_id"] == ids[0]


def test_jobs_are_cancelled_by_batch_tenant_state_and_all(
    marco: Marco, database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARCO_MAX_QUEUED", "100")
    settings.load.cache_clear()
    batch = uuid4()
    with Producer(database_url, redis_url) as producer:
        first = [str(j) for j in producer.submit_many([question(), question()], batch_id=batch)]
        second = [str(j) for j in producer.submit_many([question(), question()])]
        third = str(producer.submit(question(tenant="research")))
        fourth = str(producer.submit(question(tenant="sales")))

    def cancelled(*words: str, code: int = 0) -> list[str]:
        return [job["job_id"] for job in marco("cancel", *words, code=code).get("jobs", [])]

    for wrong in ((), (first[0], "--all"), ("--all", "--tenant", "a"), ("--batch", "x")):
        assert cancelled(*wrong, code=2) == []
    for others in (("--state", "queued"), ("--batch", str(batch)), (first[0],), ("--all",)):
        assert cancelled("--tenant", "", *others, code=2) == []  # it does not mean everyone
    assert cancelled("--batch", str(uuid4())) == cancelled("--state", "running") == []
    assert cancelled("--batch", str(batch)) == first
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(second)))
    assert cancelled("-") == second
    assert cancelled("--state", "queued") == []
    assert cancelled("--tenant", "research") == [third]
    assert cancelled("--all") == [fourth]
    assert marco("verify")["ok"]
