"""The logins that `marco migrate` makes for the containers are enough for what each does."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import errors, sql
from pydantic import ValidationError

from marco_search import migrations
from marco_search import settings as settings_module
from marco_search.errors import RightsMissing
from marco_search.local import ServiceUrls
from marco_search.settings import Settings
from marco_search.store.db import Database
from marco_search.store.reads import job_record
from marco_search.store.roles import make_logins
from marco_search.store.seal.verification import verify_all
from marco_search.store.trail import partitions
from tests.integration.logins import as_user
from tests.integration.toys import insert, question, runner, settings_for, state
from tests.toy import ToyRuntime

ROLES = {
    "migrator": ["owner"],
    "worker": ["app"],
    "reader": ["auditor_all"],
}


@pytest.fixture
def prefix(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Roles belong to the server: those of this test have names of their own."""
    name = f"t{uuid.uuid4().hex[:8]}"
    monkeypatch.setenv("MARCO_ROLE_PREFIX", name)
    settings_module.load.cache_clear()
    yield name
    settings_module.load.cache_clear()


def wanted(prefix: str, password: str) -> Settings:
    logins = {
        f"{prefix}_{login}": {"password": password, "roles": [f"{prefix}_{role}" for role in roles]}
        for login, roles in ROLES.items()
    }
    variables = {"MARCO_ROLE_PREFIX": prefix, "MARCO_LOGINS": json.dumps(logins)}
    return Settings.model_validate(variables)


@pytest.fixture
def made(services: ServiceUrls, prefix: str) -> Iterator[str]:
    """The superuser's URL of a database that had to be made, with the logins."""
    url = urlunsplit(urlsplit(services.database_url)._replace(path=f"/{prefix}"))
    make_logins(url, wanted(prefix, "secret"))
    yield url
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(
            sql.SQL("ALTER DATABASE {} OWNER TO CURRENT_USER").format(sql.Identifier(prefix))
        )
        roles = conn.execute(
            "SELECT rolname FROM pg_roles WHERE rolname LIKE %s", [f"{prefix}%"]
        ).fetchall()
        for (name,) in roles:
            conn.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(sql.Identifier(name)))
        for (name,) in roles:
            conn.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))
    with psycopg.connect(services.database_url, autocommit=True) as conn:
        conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(prefix)))


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


def test_the_passwords_are_those_of_the_last_run(made: str, prefix: str) -> None:
    make_logins(made, wanted(prefix, "another"))
    worker = as_user(made, f"{prefix}_worker")
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(worker)
    psycopg.connect(worker.replace(":secret@", ":another@")).close()


def test_only_a_superuser_makes_logins(made: str, prefix: str) -> None:
    with pytest.raises(RightsMissing, match="superuser"):
        make_logins(as_user(made, f"{prefix}_worker"), wanted(prefix, "secret"))


def test_a_password_that_fits_no_url_is_refused(prefix: str) -> None:
    with pytest.raises(ValidationError, match="letters, digits"):
        wanted(prefix, "p@ss/word")
