"""Migrations: up, down, in step with the models, and safe to start several times at once."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
import sqlalchemy.exc

from marco_search import doctor, migrations, schema
from marco_search.errors import DatabaseUnavailable, RightsMissing, SchemaMismatch
from marco_search.local import ServiceUrls
from marco_search.store.db import SCHEMA_REVISION, Database, check_schema
from tests.databases import differences, scratch_database
from tests.integration.logins import logins
from tests.integration.toys import marco, settings_for


@pytest.fixture
def empty(services: ServiceUrls) -> Iterator[str]:
    with scratch_database(services.database_url) as url:
        yield url


def test_schema_and_migrations_agree(services: ServiceUrls) -> None:
    assert differences(services.database_url) == []


def test_a_difference_is_found(services: ServiceUrls, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = schema.TENANTS.columns
    monkeypatch.setitem(columns, "max_queued", replace(columns["max_queued"], kind="int4"))
    found = differences(services.database_url)
    assert "max_queued" in next(line for line in found if "modify_nullable" in line)


def test_upgrading_twice_changes_nothing(empty: str) -> None:
    assert migrations.current(empty) is None
    migrations.upgrade(empty)
    views = "SELECT oid FROM pg_class WHERE relnamespace = 'audit'::regnamespace ORDER BY oid"
    with psycopg.connect(empty) as conn:
        before = conn.execute(views).fetchall()
        migrations.upgrade(empty)
        assert conn.execute(views).fetchall() == before, "readers of views are not disturbed"
    assert migrations.current(empty) == SCHEMA_REVISION


def test_several_may_upgrade_at_once(empty: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: migrations_in_a_process(empty), range(2)))
    assert migrations.current(empty) == SCHEMA_REVISION


def migrations_in_a_process(url: str) -> None:
    code = "import sys; from marco_search import migrations; migrations.upgrade(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, url], check=True, timeout=120)


def test_they_work_from_a_path_with_spaces_and_percent_signs(empty: str, tmp_path: Path) -> None:
    root = Path(migrations.__file__).parents[2]
    copy = tmp_path / "100% of it"
    ignore = shutil.ignore_patterns("*.safetensors", "__pycache__")
    shutil.copytree(root / "marco_search", copy / "marco_search", ignore=ignore)
    code = (
        "import sys; from marco_search import migrations; migrations.upgrade(sys.argv[1]); "
        "print(migrations.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, empty],
        cwd=copy, check=True, timeout=120, capture_output=True, text=True,
    )  # fmt: skip
    assert str(copy) in done.stdout
    assert migrations.current(empty) == SCHEMA_REVISION


def test_a_server_that_is_not_there_is_named_without_its_password() -> None:
    with pytest.raises(DatabaseUnavailable) as caught:
        migrations.upgrade("postgresql://app:secret@127.0.0.1:1/marco")
    assert "127.0.0.1" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_an_unmigrated_database_is_refused_with_what_to_do(empty: str) -> None:
    database = Database(empty, application="test")
    with pytest.raises(SchemaMismatch, match="marco migrate"), database.transaction():
        pass
    migrations.upgrade(empty, "0005")
    with pytest.raises(SchemaMismatch, match="0005"), database.transaction():
        pass


def test_a_database_older_than_the_first_version_is_refused(database_url: str) -> None:
    at(database_url, "0004")
    before = objects(database_url)
    done = marco(database_url, "migrate")
    assert done.returncode == 4
    assert "0004, older than version 0.1.0" in done.stderr
    assert objects(database_url) == before


def test_a_database_between_two_versions_is_refused_with_what_to_do(database_url: str) -> None:
    at(database_url, "0015")
    before = objects(database_url)
    done = marco(database_url, "migrate")
    assert done.returncode == 4
    assert "0015, between two versions: migrate it with commit" in done.stderr
    assert objects(database_url) == before


def objects(url: str) -> list[tuple[str, ...]]:
    """All views, functions, policies, triggers, tables and rights of the database."""
    with psycopg.connect(url) as conn:
        return conn.execute(
            """
            SELECT relname, relkind::text, relacl::text FROM pg_class
                WHERE relnamespace::regnamespace::text IN ('public', 'audit', 'partitions')
            UNION ALL SELECT proname, prosrc, proacl::text FROM pg_proc
                WHERE pronamespace = 'public'::regnamespace
            UNION ALL SELECT tablename, policyname, qual FROM pg_policies
            UNION ALL SELECT tgrelid::regclass::text, tgname, tgenabled::text FROM pg_trigger
                WHERE NOT tgisinternal
            ORDER BY 1, 2, 3
            """
        ).fetchall()


def at(url: str, revision: str) -> None:
    with psycopg.connect(url) as conn:
        conn.execute("UPDATE alembic_version SET version_num = %s", [revision])


def test_an_older_program_does_nothing_to_a_newer_database(database_url: str) -> None:
    at(database_url, "9999")
    before = objects(database_url)
    done = marco(database_url, "migrate")
    assert done.returncode == 4
    assert f"9999, newer than this program ({SCHEMA_REVISION})" in done.stderr
    assert "marco migrate" not in done.stderr
    schema = doctor.schema(settings_for(database_url, "redis://x"))
    assert (schema.ok, "newer" in schema.detail, "migrate`" in schema.fix) == (False, True, False)
    assert objects(database_url) == before


def test_a_migration_that_fails_leaves_all_as_it_was(database_url: str) -> None:
    before = objects(database_url)
    at(database_url, "0005")  # what comes next is there already
    with pytest.raises(sqlalchemy.exc.ProgrammingError, match="already exists"):
        migrations.upgrade(database_url)
    assert objects(database_url) == before
    at(database_url, SCHEMA_REVISION)
    with psycopg.connect(database_url) as conn:
        conn.execute("CREATE VIEW public.in_the_way AS SELECT ensure_partitions(0)")
        conn.execute("DROP SCHEMA audit CASCADE")
    before = objects(database_url)
    with pytest.raises(SchemaMismatch, match="in_the_way"):
        migrations.upgrade(database_url)
    assert objects(database_url) == before
    assert migrations.current(database_url) == SCHEMA_REVISION


def test_who_reads_meanwhile_is_named_and_nothing_changes(database_url: str) -> None:
    before = objects(database_url)
    with psycopg.connect(database_url) as reader:
        reader.execute("SELECT count(*) FROM audit.jobs")
        at(database_url, "0011")
        with pytest.raises(DatabaseUnavailable, match=f"pid {reader.info.backend_pid}"):
            migrations.upgrade(database_url)
    assert objects(database_url) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_it_leaves_nothing_and_the_next_one_does_all(
    empty: str, number: signal.Signals
) -> None:
    code = "import sys; from marco_search import migrations; migrations.upgrade(sys.argv[1])"
    with psycopg.connect(empty) as other:
        other.execute("CREATE SCHEMA audit")  # the migration waits here, after all tables
        process = subprocess.Popen([sys.executable, "-c", code, empty], stderr=subprocess.DEVNULL)
        with psycopg.connect(empty, autocommit=True) as watch:
            waits = "SELECT FROM pg_stat_activity WHERE query LIKE 'CREATE SCHEMA audit%%'"
            waits += " AND wait_event_type = 'Lock' AND datname = current_database()"
            while watch.execute(waits.encode()).fetchone() is None:
                assert process.poll() is None
            process.send_signal(number)
            process.wait(timeout=60)
        other.rollback()
    assert migrations.current(empty) is None
    migrations.upgrade(empty)
    with psycopg.connect(empty) as conn:
        check_schema(conn)


@pytest.mark.parametrize(
    "wreck",
    [
        "DROP SCHEMA audit CASCADE",
        "DROP FUNCTION ensure_partitions",
        "DROP TABLE partitions.audit_log_default; DO $$ DECLARE p regclass; BEGIN FOR p IN SELECT"
        " inhrelid FROM pg_inherits WHERE inhparent = 'audit_log'::regclass LOOP"
        " EXECUTE format('DROP TABLE %s', p); END LOOP; END $$",
    ],
)
def test_what_is_missing_at_the_newest_migration_is_seen_and_made(
    database_url: str, wreck: str
) -> None:
    before = objects(database_url)
    with psycopg.connect(database_url) as conn:
        conn.execute(wreck.encode())
    database = Database(database_url, application="test")
    with pytest.raises(SchemaMismatch, match="marco migrate"), database.transaction():
        pass
    migrations.upgrade(database_url)
    assert [row[:2] for row in objects(database_url)] == [row[:2] for row in before]


def test_encodings_that_hold_not_every_text_are_refused(services: ServiceUrls) -> None:
    for encoding in ("SQL_ASCII", "LATIN1"):
        with encoded(services.database_url, encoding) as url:
            with pytest.raises(SchemaMismatch, match=f"encoding is {encoding}.*UTF8"):
                migrations.upgrade(url)
            assert "encoding" in doctor.postgres(settings_for(url, "redis://x")).detail


@contextmanager
def encoded(url: str, encoding: str) -> Iterator[str]:
    name = f"marco_{encoding.lower()}"
    make = f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0"
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(f"{make} LOCALE_PROVIDER libc LOCALE 'C'".encode())
        try:
            yield urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
        finally:
            conn.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def test_only_the_owner_migrates(database_url: str) -> None:
    with logins(database_url) as login, pytest.raises(RightsMissing, match="owner's role"):
        migrations.upgrade(login("marco_app"))


def test_every_table_view_and_column_has_a_comment(database_url: str) -> None:
    with psycopg.connect(database_url) as conn:
        bare = conn.execute(
            """
            SELECT c.relname, a.attname FROM pg_class AS c
            JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum >= 0 AND NOT a.attisdropped
            JOIN pg_namespace AS n ON n.oid = c.relnamespace
            WHERE nspname IN ('public', 'audit', 'partitions') AND c.relkind IN ('r', 'p', 'v')
                AND c.relname <> 'alembic_version'
                AND (col_description(c.oid, a.attnum) IS NULL OR obj_description(c.oid) IS NULL)
            """
        ).fetchall()
    assert bare == []


def test_every_foreign_key_can_be_looked_up_by_an_index(database_url: str) -> None:
    with psycopg.connect(database_url) as conn:
        bare = conn.execute(
            """
            SELECT conrelid::regclass::text, conname FROM pg_constraint AS k
            WHERE contype = 'f' AND NOT EXISTS (
                SELECT FROM pg_index AS i
                WHERE i.indrelid = k.conrelid AND i.indkey[0] = k.conkey[1]
            )
            """
        ).fetchall()
    assert bare == []
