"""Every way in which Postgres refuses says what it is, and that the call may be made again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql

from marco_search import migrations
from marco_search.errors import DatabaseUnavailable, MarcoError
from marco_search.store import db
from marco_search.store.db import Database
from tests.integration.audited import Audited
from tests.integration.logins import Login, logins

UNREACHABLE = "see that Postgres runs"


@pytest.fixture
def login(database_url: str) -> Iterator[Login]:
    with logins(database_url) as made:
        yield made


def said_by(url: str, statement: str = "SELECT 1") -> str:
    with closing(Database(url, application="test")) as database:
        with pytest.raises(DatabaseUnavailable) as refused, database.transaction() as conn:
            conn.execute(statement.encode())
        assert refused.value.retryable
        assert "secret" not in str(refused.value)
        return str(refused.value)


def raised(state: str) -> str:
    return f"DO $$ BEGIN RAISE EXCEPTION 'as it happens' USING ERRCODE = '{state}'; END $$"


@pytest.mark.parametrize(
    ("statement", "meaning"),
    [
        ("SET LOCAL statement_timeout = 20; SELECT pg_sleep(9)", "ran into its time limit"),
        ("SELECT pg_terminate_backend(pg_backend_pid())", "this session was terminated"),
        ("SELECT pg_cancel_backend(pg_backend_pid())", "was cancelled"),
        ("SET LOCAL transaction_timeout = 20; SELECT pg_sleep(9)", "stood still"),
        ("SET TRANSACTION READ ONLY; DELETE FROM tenants", "can only be read"),
        (raised("55P03"), "holds a lock"),
        (raised("40P01"), "waited for each other"),
        (raised("40001"), "changed the same rows"),
        (raised("53100"), "disk is full"),
        (raised("53200"), "out of memory"),
        (raised("53300"), "no connection is free"),
        (raised("57P03"), "starting or stopping"),
        (raised("58030"), "as it happens"),
    ],
)
def test_what_fails_in_a_transaction_is_named(
    filled: Audited, statement: str, meaning: str
) -> None:
    said = said_by(filled.url, statement)
    assert meaning in said
    assert UNREACHABLE not in said


def test_what_keeps_from_connecting_is_named(database_url: str, login: Login) -> None:
    app = login("marco_app")
    parts = urlsplit(app)
    host = parts.netloc.rpartition("@")[2]
    for url, meaning in (
        (urlunsplit(parts._replace(netloc=f"{parts.username}:secrets@{host}")), "the password"),
        (urlunsplit(parts._replace(netloc=f"nobody:secrets@{host}")), "check the user"),
        (urlunsplit(parts._replace(path="/nowhere")), "create the database"),
        (urlunsplit(parts._replace(netloc="u:secrets@127.0.0.1:1")), UNREACHABLE),
        (urlunsplit(parts._replace(netloc="u:secrets@nowhere.invalid")), UNREACHABLE),
        (app + "?sslmode=require", "sslmode"),
        (app + "?target_session_attrs=standby", "standby"),
    ):
        said = said_by(url)
        assert meaning in said, said
        with pytest.raises(MarcoError) as refused:
            migrations.current(url)
        assert (refused.value.exit_code, meaning in str(refused.value)) == (4, True)
        assert "secret" not in str(refused.value)


def test_a_full_server_is_named_at_once_and_by_a_pool(
    database_url: str, login: Login, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "CHECKOUT_TIMEOUT_S", 0.5)
    app = login("marco_app")
    with closing(Database(app, application="test")) as database, database.transaction():
        limit = sql.SQL("ALTER ROLE {} CONNECTION LIMIT 1")
        with psycopg.connect(database_url) as conn:
            conn.execute(limit.format(sql.Identifier(str(urlsplit(app).username))))
        assert "no connection is free" in said_by(app)
        refused = pytest.raises(DatabaseUnavailable, match="no connection is free")
        with refused, ExitStack() as stack:
            for _ in range(3):  # the pool may have made more than one before
                stack.enter_context(database.transaction())


def test_a_pool_that_is_used_up_says_so(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db, "CHECKOUT_TIMEOUT_S", 0.5)
    with closing(Database(database_url, application="test", connections=1)) as database:
        refused = pytest.raises(DatabaseUnavailable, match="uses all 1")
        with database.transaction(), refused, database.transaction():
            pass


def test_one_session_of_the_servers_is_enough_for_one_transaction_at_a_time(
    database: Database,
) -> None:
    sessions = set()
    for _ in range(4):
        with database.transaction() as conn:
            sessions.add(conn.info.backend_pid)
    assert len(sessions) == 1
