"""The logins of the containers, made by psql as the image does, are enough for what each does."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import errors, sql

from marco_search import migrations
from marco_search import settings as settings_module
from marco_search.local import ServiceUrls, programs
from marco_search.store.db import Database
from marco_search.store.reads import job_record
from marco_search.store.seal.verification import verify_all
from marco_search.store.trail import partitions
from tests.databases import scratch_database
from tests.integration.logins import as_user
from tests.integration.toys import insert, question, runner, settings_for, state
from tests.toy import ToyRuntime

LOGINS = Path(__file__).resolve().parents[2] / "ops" / "docker" / "logins.sql"
PASSWORDS = dict.fromkeys(("OWNER_PASSWORD", "APP_PASSWORD", "AUDITOR_PASSWORD"), "secret")


@pytest.fixture
def prefix(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Roles belong to the server: those of this test have names of their own."""
    name = f"t{uuid.uuid4().hex[:8]}"
    monkeypatch.setenv("MARCO_ROLE_PREFIX", name)
    settings_module.load.cache_clear()
    yield name
    settings_module.load.cache_clear()


@pytest.fixture
def made(services: ServiceUrls, prefix: str, tmp_path: Path) -> Iterator[str]:
    """The superuser's URL of a database that the script was run on, and nothing else."""
    script = tmp_path / "logins.sql"
    script.write_text(LOGINS.read_text().replace("marco_", f"{prefix}_"))
    with scratch_database(services.database_url) as url:
        command = [str(programs.installed().postgres / "psql"), "-qX", "-v", "ON_ERROR_STOP=1"]
        done = subprocess.run(
            [*command, "-f", str(script), url],
            env=os.environ | PASSWORDS, capture_output=True, text=True,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        yield url
        with psycopg.connect(url, autocommit=True) as conn:
            roles = conn.execute(
                "SELECT rolname FROM pg_roles WHERE rolname LIKE %s", [f"{prefix}%"]
            ).fetchall()
            database = sql.Identifier(urlsplit(url).path[1:])
            conn.execute(sql.SQL("ALTER DATABASE {} OWNER TO CURRENT_USER").format(database))
            for (name,) in roles:
                conn.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(sql.Identifier(name)))
            for (name,) in roles:
                conn.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def test_a_job_from_migration_to_verification_without_the_superuser(made: str, prefix: str) -> None:
    migrator, worker, reader = (
        as_user(made, f"{prefix}_{login}") for login in ("migrator", "worker", "reader")
    )
    assert migrations.upgrade(migrator) is None
    assert migrations.upgrade(migrator) is None  # again, as at every start of the stack
    with closing(Database(worker, application="test")) as database:
        (stored,) = insert(database, question())
        runner(settings_for(worker, "redis://nobody"), database, ToyRuntime()).run_next()
        with database.transaction() as conn:
            assert state(conn, stored.id) == "succeeded"
            assert partitions.ensure(conn, ahead=4) != []
    reading = Database(reader, application="test", read_only=True)
    with closing(reading), reading.transaction() as conn:
        assert job_record.read(conn, stored.id).answers
    assert verify_all(reader).ok
    with psycopg.connect(reader) as conn, pytest.raises(errors.InsufficientPrivilege):
        conn.execute("UPDATE public.jobs SET answer = 'x'")
