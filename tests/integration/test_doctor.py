"""The doctor sees what is wrong and says how to mend it, without changing anything."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from pydantic import SecretStr

from marco_search.broker import Publisher
from marco_search.settings import Settings
from ops.services.doctor import run_checks
from ops.services.finding import Finding
from producer import EVERYONE, Producer


def _checked(settings: Settings) -> dict[str, Finding]:
    return {finding.name: finding for finding in run_checks(settings)}


@pytest.fixture
def settings(tmp_path: Path, database_url: str, redis_url: str) -> Settings:
    urls = {"database_url": SecretStr(database_url), "redis_url": SecretStr(redis_url)}
    return Settings().model_copy(update={"home": tmp_path, **urls})


def test_all_is_well_with_services_that_answer(settings: Settings) -> None:
    found = _checked(settings)
    assert [finding for finding in found.values() if not finding.ok] == []
    assert "***" in found["postgres"].detail
    assert "0 waiting" in found["worker"].detail


def test_an_older_schema_is_seen(settings: Settings, database_url: str) -> None:
    with psycopg.connect(database_url) as session:
        session.execute("DELETE FROM alembic_version")
    schema = _checked(settings)["schema"]
    assert not schema.ok
    assert "marco migrate" in schema.mend


def test_jobs_that_wait_for_no_worker_are_seen(settings: Settings, redis_url: str) -> None:
    from uuid import uuid4

    publisher = Publisher(redis_url, settings.queue)
    publisher.publish([uuid4()])
    publisher.close()
    worker = _checked(settings)["worker"]
    assert not worker.ok
    assert "1 waiting" in worker.detail
    assert worker.mend == "run `marco worker`"


def test_servers_that_do_not_answer_are_named_without_their_passwords(tmp_path: Path) -> None:
    nowhere = {
        "database_url": SecretStr("postgresql://u:hush@127.0.0.1:1/x"),
        "redis_url": SecretStr("redis://:hush@127.0.0.1:1/0"),
        "home": tmp_path,
    }
    found = _checked(Settings().model_copy(update=nowhere))
    for name, variable in (("postgres", "DATABASE_URL"), ("redis", "REDIS_URL")):
        assert not found[name].ok
        assert variable in found[name].mend
    assert not found["worker"].ok
    assert "hush" not in str(found)


def test_what_keeps_jobs_waiting_is_seen(
    settings: Settings, database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Producer(database_url, redis_url) as producer:
        producer.pause_tenant("research")
        assert "tenant research" in _checked(settings)["pauses"].detail
        producer.pause_tenant(EVERYONE)
    assert not _checked(settings)["pauses"].ok
    monkeypatch.setenv("MARCO_RUNTIME_UR", "http://x")
    monkeypatch.setenv("MARCO_ODDITY", "1")
    variables = _checked(settings)["variables"]
    assert not variables.ok
    assert "MARCO_RUNTIME_UR is read by nothing, did you mean MARCO_RUNTIME?" in variables.detail
    assert "MARCO_ODDITY" in variables.detail
    odd = {"heartbeat_s": 40.0, "console_token": SecretStr("short")}
    refused = _checked(settings.model_copy(update=odd))["settings"]
    assert not refused.ok
    assert "MARCO_HEARTBEAT_S" in refused.detail
    assert "MARCO_CONSOLE_TOKEN" in refused.detail
    assert "short" not in refused.detail


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("database_url", "postgresql://u:SeCrEt99%zz@127.0.0.1/x"),
        ("database_url", "postgresql://u:SeCrEt99@[::1/x"),
        ("database_url", "postgresql://127.0.0.1:1/x?passwor%64=SeCrEt99"),
        ("redis_url", "redis://:SeCrEt99#@127.0.0.1"),
        ("redis_url", "redis://:SeCrEt99/@127.0.0.1"),
    ],
)
def test_no_password_of_a_bad_address_is_shown(
    settings: Settings, name: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name.upper(), address)
    found = _checked(settings.model_copy(update={name: SecretStr(address)}))
    assert not all(finding.ok for finding in found.values())
    assert "SeCrEt99" not in str(found)


def test_embedded_services_at_rest_are_no_fault(tmp_path: Path) -> None:
    idle = {"database_url": None, "redis_url": None, "home": tmp_path / "none"}
    found = _checked(Settings().model_copy(update=idle))
    assert [finding for finding in found.values() if not finding.ok] == []
    assert not (tmp_path / "none").exists(), "nothing is made"
