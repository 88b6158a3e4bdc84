"""The doctor sees what is wrong and says how to fix it, without changing anything."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from pydantic import SecretStr

from marco_search import doctor, migrations
from marco_search.broker import Publisher
from marco_search.doctor import Finding, run_checks
from marco_search.migrations import derived
from marco_search.settings import Settings
from marco_search.store.db import SCHEMA_REVISION
from producer import EVERYONE, Producer
from tests.integration.audited import Audited
from tests.integration.logins import logins
from tests.integration.toys import marco


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
    assert "marco migrate" in schema.fix


def test_jobs_that_wait_for_no_worker_are_seen(settings: Settings, redis_url: str) -> None:
    from uuid import uuid4

    publisher = Publisher(redis_url, settings.queue)
    publisher.publish([uuid4()])
    publisher.close()
    worker = _checked(settings)["worker"]
    assert not worker.ok
    assert "1 waiting" in worker.detail
    assert worker.fix == "run `marco worker`"


def test_servers_that_do_not_answer_are_named_without_their_passwords(tmp_path: Path) -> None:
    nowhere = {
        "database_url": SecretStr("postgresql://u:hush@127.0.0.1:1/x"),
        "redis_url": SecretStr("redis://:hush@127.0.0.1:1/0"),
        "home": tmp_path,
    }
    found = _checked(Settings().model_copy(update=nowhere))
    for name, variable in (("postgres", "DATABASE_URL"), ("redis", "REDIS_URL")):
        assert not found[name].ok
        assert variable in found[name].fix
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
    assert "MARCO_RUNTIME_UR is not a setting, did you mean MARCO_RUNTIME?" in variables.detail
    assert "MARCO_ODDITY" in variables.detail
    odd = {"heartbeat_s": 40.0, "console_token": SecretStr("short")}
    refused = _checked(settings.model_copy(update=odd))["settings"]
    assert not refused.ok
    assert "MARCO_HEARTBEAT_S" in refused.detail
    assert "MARCO_CONSOLE_TOKEN" in refused.detail
    assert "short" not in refused.detail


def test_no_password_of_a_bad_address_is_shown(settings: Settings) -> None:
    for name, address in (
        ("database_url", "postgresql://u:SeCrEt99%zz@127.0.0.1/x"),
        ("database_url", "postgresql://u:SeCrEt99@[::1/x"),
        ("database_url", "postgresql://127.0.0.1:1/x?passwor%64=SeCrEt99"),
        ("redis_url", "redis://:SeCrEt99#@127.0.0.1"),
        ("redis_url", "redis://:SeCrEt99/@127.0.0.1"),
    ):
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv(name.upper(), address)
            found = _checked(settings.model_copy(update={name: SecretStr(address)}))
        assert not all(finding.ok for finding in found.values()), address
        assert "SeCrEt99" not in str(found)


def test_embedded_services_at_rest_are_no_fault(tmp_path: Path) -> None:
    idle = {"database_url": None, "redis_url": None, "home": tmp_path / "none"}
    found = _checked(Settings().model_copy(update=idle))
    assert [finding for finding in found.values() if not finding.ok] == []
    assert not (tmp_path / "none").exists(), "nothing is made"


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        ("ALTER TABLE nodes DISABLE TRIGGER insert_only", "insert_only of public.nodes: disabled"),
        ("ALTER TABLE nodes DISABLE TRIGGER ALL", "keys of partitions.nodes_default: disabled"),
        ("DROP TRIGGER insert_only ON chain", "trigger insert_only of public.chain: missing"),
        (
            "DROP TRIGGER insert_only ON partitions.nodes_default",
            "trigger insert_only of partitions.nodes_default: missing",
        ),
        (
            "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql"
            " AS 'BEGIN RETURN NULL; END'",
            "function refuse_change(): changed",
        ),
        ("GRANT UPDATE (text) ON nodes TO marco_app", "UPDATE of marco_app on column"),
        ("GRANT DELETE ON chain TO PUBLIC", "right DELETE of PUBLIC on table public.chain"),
        ("REVOKE INSERT ON nodes FROM marco_app", "INSERT of marco_app on table public.nodes"),
        ("GRANT USAGE ON SCHEMA public TO marco_auditor", "USAGE of marco_auditor on schema"),
        ("ALTER TABLE jobs DISABLE ROW LEVEL SECURITY", "row-level security of jobs: off"),
        ("DROP POLICY own_tenants ON nodes", "policy own_tenants of nodes: missing"),
        ("ALTER POLICY own_tenants ON nodes USING (true)", "policy own_tenants of nodes: changed"),
        ("CREATE POLICY more ON jobs USING (true)", "policy more of jobs: not made by"),
        ("DROP VIEW audit.day_usage", "view day_usage: missing"),
        ("ALTER VIEW audit.jobs RESET (security_invoker)", "view jobs: changed"),
        (
            "CREATE OR REPLACE VIEW audit.vocabulary WITH (security_invoker) AS"
            " SELECT * FROM public.vocabulary WHERE false",
            "view vocabulary: changed",
        ),
        ("CREATE RULE r AS ON DELETE TO nodes DO INSTEAD NOTHING", "rule of public.nodes"),
        ("ALTER TABLE nodes OWNER TO CURRENT_USER", "table public.nodes: belongs to "),
        ("ALTER SCHEMA audit OWNER TO CURRENT_USER", "schema audit: belongs to "),
        ("ALTER TABLE nodes ENABLE REPLICA TRIGGER insert_only", "of public.nodes: disabled"),
        (
            "CREATE FUNCTION audit.more() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "function more(): not made by the migrations",
        ),
        ("GRANT SELECT ON nodes TO marco_auditor WITH GRANT OPTION", "SELECT WITH GRANT OPTION"),
        ("GRANT EXECUTE ON FUNCTION ensure_partitions TO PUBLIC", "EXECUTE of PUBLIC on function"),
        ("ALTER TABLE nodes DETACH PARTITION partitions.nodes_default", "partitions.nodes_default"),
    ],
)  # fmt: skip
def test_what_somebody_did_to_the_guards_is_named(filled: Audited, change: str, seen: str) -> None:
    with psycopg.connect(filled.url) as conn, conn.transaction(force_rollback=True):
        conn.execute(change.encode())
        found = derived.differences(conn, "marco")
    assert any(seen in line for line in found), found


@pytest.mark.parametrize("role", ["marco_app", "marco_owner"])
def test_logins_that_are_no_superuser_s_see_it_too(
    settings: Settings, database_url: str, role: str
) -> None:
    with logins(database_url) as login:
        theirs = settings.model_copy(update={"database_url": SecretStr(login(role))})
        assert doctor.schema(theirs).ok
        assert doctor.guards(theirs).detail == "as the migrations make them"
        with psycopg.connect(database_url) as conn:
            conn.execute("ALTER POLICY own_tenants ON nodes USING (true)")
        guards = doctor.guards(theirs)
        assert not guards.ok
        assert guards.detail == "policy own_tenants of nodes: changed"
        assert "marco migrate" in guards.fix


def test_migrate_makes_views_policies_and_rights_anew(
    settings: Settings, database_url: str
) -> None:
    with psycopg.connect(database_url) as conn:
        conn.execute("DROP VIEW audit.jobs CASCADE")
        conn.execute("ALTER TABLE jobs DISABLE ROW LEVEL SECURITY")
        conn.execute("ALTER POLICY own_tenants ON nodes USING (true)")
        conn.execute("REVOKE ALL ON nodes FROM marco_app")
        conn.execute("GRANT UPDATE (priority) ON jobs TO marco_app")  # as version 0.1.0 did
        conn.execute("GRANT DELETE ON chain TO marco_redactor")
        conn.execute("GRANT USAGE ON SCHEMA public TO marco_auditor")
    assert not doctor.schema(settings).ok
    migrations.upgrade(database_url)
    guards = doctor.guards(settings)
    assert guards.ok, guards.detail
    assert doctor.schema(settings).ok


@pytest.mark.parametrize("role", ["marco_auditor", "marco_auditor_all"])
def test_an_auditor_s_login_is_named_as_such(settings: Settings, role: str) -> None:
    assert settings.database_url is not None
    with logins(settings.database_url.get_secret_value()) as login:
        url = login(role)
        theirs = settings.model_copy(update={"database_url": SecretStr(url)})
        schema = doctor.schema(theirs)
        assert not schema.ok
        assert "auditor" in schema.detail
        assert "migrate" not in str(schema)
        assert doctor.guards(theirs).ok
        done = marco(url, "pause", "--all")
        assert (done.returncode, "may not do that" in done.stderr) == (2, True), done.stderr


def test_a_read_only_database_and_a_silent_host_are_seen(
    settings: Settings, database_url: str
) -> None:
    name = urlsplit(database_url).path[1:]
    with psycopg.connect(database_url) as conn:
        conn.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on".encode())
    postgres = doctor.postgres(settings)
    assert (postgres.ok, "read-only" in postgres.detail) == (False, True)
    with psycopg.connect(database_url) as conn:
        conn.execute("SET TRANSACTION READ WRITE")
        conn.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only".encode())
    parts = urlsplit(database_url)
    who, _, where = parts.netloc.rpartition("@")
    several = urlunsplit(parts._replace(netloc=f"{who}@127.0.0.1:1,{where}"))
    postgres = doctor.postgres(settings.model_copy(update={"database_url": SecretStr(several)}))
    assert postgres.ok
    assert "no answer from 127.0.0.1:1" in postgres.detail
    done = marco(several, "migrate")
    assert (done.returncode, done.stdout) == (0, f"Already at {SCHEMA_REVISION}.\n"), done.stderr


@pytest.mark.parametrize(
    ("command", "url"),
    [
        ("doctor", "postgresql://u:hush99%zz@h/db"),
        ("migrate", "postgresql://u:hush@[::1/db"),
        ("status", "postgresql://u:1/hush@h/db"),
    ],
)
def test_no_command_repeats_an_address_it_can_not_read(command: str, url: str) -> None:
    done = marco(url, command)
    assert done.returncode != 0
    assert "DATABASE_URL" in done.stdout + done.stderr
    assert "hush" not in done.stdout + done.stderr
