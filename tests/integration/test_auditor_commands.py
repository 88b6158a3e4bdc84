"""Every command that only reads works with an auditor's login, or says which login it takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from fastapi.testclient import TestClient

from marco_search import settings
from marco_search.cli.main import main
from marco_search.console.access import Access
from marco_search.console.app import create_app
from marco_search.console.reader import Reader
from marco_search.store.db import Database
from tests.integration.audited import Audited
from tests.integration.logins import Login, logins

Marco = Callable[..., Any]
FORMATS = ("html", "svg", "dot", "mermaid", "json")


@pytest.fixture(scope="module")
def login(filled: Audited) -> Iterator[Login]:
    with logins(filled.url) as url:
        name = urlsplit(url("marco_auditor")).username
        with psycopg.connect(filled.url, autocommit=True) as conn:
            conn.execute("INSERT INTO auditors VALUES (%s, 'acme')", [name])
        yield url
        with psycopg.connect(filled.url, autocommit=True) as conn:
            conn.execute("DELETE FROM auditors WHERE role_name = %s", [name])


@pytest.fixture(params=["marco_auditor", "marco_auditor_all"])
def role(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def marco(
    role: str,
    login: Login,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Marco]:
    """Runs a command as an auditor who has a database and nothing else."""
    monkeypatch.setenv("DATABASE_URL", login(role))
    monkeypatch.setenv("MARCO_TENANT", "acme")
    monkeypatch.setenv("MARCO_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("REDIS_URL", raising=False)
    settings.load.cache_clear()

    def run(*words: str, code: int = 0) -> Any:
        assert main(list(words)) == code, capsys.readouterr().err
        said = capsys.readouterr()
        assert not (tmp_path / "home").exists(), "no service of its own was started"
        return said.out if code == 0 else said.err

    yield run
    settings.load.cache_clear()


@pytest.fixture
def job(filled: Audited) -> str:
    return str(filled.ids["acme0"])


def test_what_was_made_of_its_jobs(marco: Marco, role: str, filled: Audited, job: str) -> None:
    (listed,) = json.loads(marco("dataset", "list", "--json"))["datasets"]
    assert (listed["name"], listed["tenant"]) == ("names", "acme")
    with filled.database.transaction() as conn:
        query = "SELECT sample_id FROM dataset_samples WHERE job_id = %s"
        (sample,) = conn.execute(query, [job]).fetchone() or ("",)
    (origin,) = json.loads(marco("dataset", "trace", sample, "--json"))["origins"]
    assert (origin["job"], origin["unchanged"], origin["manifest_holds"]) == (job, True, True)
    assert origin["status"] == ("valid" if role == "marco_auditor_all" else None)
    said = marco("dataset", "from-traces", "set", code=2)
    assert "may not keep data sets" in said and not Path("set").exists()


def test_where_jobs_stand(marco: Marco, job: str) -> None:
    said = json.loads(marco("status", "--json"))
    assert said["counts"] == {"succeeded": 3}
    assert job in {line["job_id"] for line in said["jobs"]}
    assert "succeeded" in marco("status", job)
    assert json.loads(marco("watch", job, "--json"))["state"] == "succeeded"
    assert len(json.loads(marco("results", "--json"))) == 3
    assert json.loads(marco("results", job, "--jsonl"))["job_id"] == job


def test_drawings(marco: Marco, job: str, tmp_path: Path) -> None:
    assert "8 rollouts" in marco("show", job)
    for name in FORMATS:
        file = tmp_path / f"job.{name}"
        marco("show", job, "--format", name, "-o", str(file))
        assert file.stat().st_size > 500


def test_sql_and_export(marco: Marco, role: str, job: str, tmp_path: Path) -> None:
    (row,) = json.loads(marco("sql", "--json", "select count(*) as jobs from audit.jobs"))
    assert row["jobs"] == (3 if role == "marco_auditor" else 17)
    marco("export", str(tmp_path), "--table", "jobs", "--table", "nodes", "--table", "tokens")
    jobs = [json.loads(line) for line in (tmp_path / "jobs.jsonl").read_text().splitlines()]
    assert {line["tenant"] for line in jobs} == {"acme"}
    assert all(line["root"] for line in jobs)
    assert (tmp_path / "tokens.jsonl").stat().st_size > 0
    marco("export", str(tmp_path), "--format", "parquet", "--job", job)
    marco("export", str(tmp_path), "--format", "otlp-json")
    assert len((tmp_path / "traces.jsonl").read_text().splitlines()) == 3


def test_an_auditor_of_some_tenants_is_told_what_verifying_takes(
    marco: Marco, role: str, job: str, tmp_path: Path
) -> None:
    if role == "marco_auditor":
        for words in (["verify"], ["verify", job], ["anchor"]):
            assert "_auditor_all" in marco(*words, code=2)
        return
    assert "Everything matches." in marco("verify", job)
    assert "Everything matches." in marco("verify")
    anchor = tmp_path / "anchor.json"
    anchor.write_text(marco("anchor"))
    assert "Everything matches." in marco("verify", "--anchor", str(anchor))


def test_an_auditor_changes_nothing(
    marco: Marco, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")  # never asked
    settings.load.cache_clear()
    everyone = (["pause", "--all"], ["resume", "--all"], ["quota", "acme", "1"])
    for words in (["cancel", job], ["pause", job], *everyone):
        assert "this login may not do that" in marco(*words, code=2)


def test_the_console(login: Login, job: str, role: str) -> None:
    with closing(Database(login(role), application="test", read_only=True)) as database:
        app = create_app(Reader(database), Access(None))
        page = TestClient(app, base_url="http://localhost")
        shown = {
            "/jobs": "bakery",
            f"/jobs/{job}": "Crumbs",
            f"/jobs/{job}/report.html": "Crumbs",
            "/tenants": "acme",
            "/batches": "Batches",
        }
        for path, text in shown.items():
            found = page.get(path)
            assert (found.status_code, text in found.text) == (200, True), path
        everything = role == "marco_auditor_all"
        assert ("default" in page.get("/tenants").text) is everything
        assert ("are as they were" in page.get(f"/jobs/{job}").text) is everything


def test_an_auditor_is_told_what_takes_another_login(
    marco: Marco, role: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (("pause", "--list"), ("quota",)):
        if role == "marco_auditor":
            error = marco(*words, code=2)
            assert "this login may not do that" in str(error)
        else:
            marco(*words)
    main(["doctor", "--json"])
    checks = json.loads(capsys.readouterr().out)["checks"]
    (schema,) = [check for check in checks if check["name"] == "schema"]
    assert "auditor" in schema["detail"]
    assert "marco migrate" not in schema["fix"]
