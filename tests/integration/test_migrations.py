"""Migrations: up, down, in step with the models, and safe to start several times at once."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

import migrations
from marco_search.errors import DatabaseUnavailable, SchemaMismatch
from marco_search.store import guards
from marco_search.store.connect import SCHEMA_REVISION, Database
from migrations.check import differences, scratch_database
from ops.services import ServiceUrls


@pytest.fixture
def empty(services: ServiceUrls) -> Iterator[str]:
    with scratch_database(services.database_url) as url:
        yield url


def test_models_and_migrations_agree_and_downgrade_leaves_nothing(services: ServiceUrls) -> None:
    assert differences(services.database_url) == []


def test_a_difference_is_found(services: ServiceUrls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "INSERT_ONLY", (*guards.INSERT_ONLY, "jobs"))
    assert differences(services.database_url) == ["trigger of jobs"]


def test_the_code_names_the_newest_migration() -> None:
    assert migrations.head() == SCHEMA_REVISION


def test_upgrading_twice_changes_nothing(empty: str) -> None:
    assert migrations.current(empty) is None
    migrations.upgrade(empty)
    migrations.upgrade(empty)
    assert migrations.current(empty) == migrations.head()


def test_several_may_upgrade_at_once(empty: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: migrations_in_a_process(empty), range(2)))
    assert migrations.current(empty) == migrations.head()


def migrations_in_a_process(url: str) -> None:
    code = "import sys, migrations; migrations.upgrade(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, url], check=True, timeout=120)


def test_they_work_from_a_path_with_spaces_and_percent_signs(empty: str, tmp_path: Path) -> None:
    root = Path(migrations.__file__).parents[1]
    copy = tmp_path / "100% of it"
    for package in ("marco_search", "migrations"):
        ignore = shutil.ignore_patterns("*.safetensors", "__pycache__")
        shutil.copytree(root / package, copy / package, ignore=ignore)
    code = "import sys, migrations; migrations.upgrade(sys.argv[1]); print(migrations.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code, empty],
        cwd=copy, check=True, timeout=120, capture_output=True, text=True,
    )  # fmt: skip
    assert str(copy) in done.stdout
    assert migrations.current(empty) == migrations.head()


def test_a_server_that_is_not_there_is_named_without_its_password() -> None:
    with pytest.raises(DatabaseUnavailable) as caught:
        migrations.upgrade("postgresql://app:secret@127.0.0.1:1/marco")
    assert "127.0.0.1" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_an_unmigrated_database_is_refused_with_what_to_do(empty: str) -> None:
    database = Database(empty, application="test")
    with pytest.raises(SchemaMismatch, match="marco migrate"), database.transaction():
        pass
    migrations.upgrade(empty, "0001")
    with pytest.raises(SchemaMismatch, match="0001"), database.transaction():
        pass


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
