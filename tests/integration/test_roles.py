"""What each role may do and, above all, what it may not. Every login here is a real one."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import errors, sql

from marco_search import migrations, schema
from marco_search.errors import AccessDenied
from marco_search.local import ServiceUrls
from marco_search.store import views
from marco_search.store.db import Database
from marco_search.store.queue import tenants
from marco_search.store.reads.reader_sql import run_query, with_values
from marco_search.store.seal.verification import verify_all
from marco_search.store.trail import partitions
from ops.docs import Question, read
from tests.databases import scratch_database
from tests.integration.audited import Audited
from tests.integration.logins import Login, as_user, logins
from tests.integration.toys import (
    insert,
    question,
    runner,
    settings_for,
    state,
)
from tests.toy import ToyRuntime

Conn = psycopg.Connection[Any]
TABLES = [*schema.TABLES, "alembic_version"]
VIEWS = list(views.CREATE)


@pytest.fixture(scope="module")
def login(filled: Audited) -> Iterator[Login]:
    """Makes a login that is a member of a role, once; gives its URL."""
    with logins(filled.url) as url:
        yield url


@pytest.fixture(scope="module")
def auditor(filled: Audited, login: Login) -> Iterator[Conn]:
    """An auditor of the tenant acme, as it logged in."""
    url = login("marco_auditor")
    with psycopg.connect(filled.url, autocommit=True) as conn:
        conn.execute("INSERT INTO auditors VALUES (%s, 'acme')", [urlsplit(url).username])
    with psycopg.connect(url, autocommit=True) as conn:
        yield conn


@pytest.fixture(scope="module")
def app(login: Login) -> Iterator[Conn]:
    with psycopg.connect(login("marco_app"), autocommit=True) as conn:
        yield conn


def refused(conn: Conn, statement: str, *kinds: type[Exception]) -> None:
    with pytest.raises(kinds or (errors.InsufficientPrivilege,)):
        conn.execute(statement.encode())


def update(table: str) -> str:
    """A change of every row to what it was."""
    column = next(iter(schema.TABLES[table].columns))
    return f"UPDATE {table} SET {column} = {column}"


def ids(conn: Conn, view: str) -> set[Any]:
    query = sql.SQL("SELECT DISTINCT job_id FROM audit.{}").format(sql.Identifier(view))
    return {row[0] for row in conn.execute(query)}


# The auditor's jobs are in no batch and have no forks (below, and test_forks.py); models counts.
WITH_JOB = [
    name
    for name, create in views.CREATE.items()
    if "job_id" in create.split("FROM")[0] and name not in ("batch_lines", "forks", "models")
]


@pytest.mark.parametrize("view", WITH_JOB)
def test_an_auditor_sees_its_tenant_in_every_view_and_nobody_else_s(
    filled: Audited, auditor: Conn, login: Login, view: str
) -> None:
    acme = {filled.ids[f"acme{i}"] for i in range(3)}
    assert ids(auditor, view) == acme
    with psycopg.connect(login("marco_auditor_all")) as conn:
        everything = ids(conn, view)
    assert acme < everything
    with psycopg.connect(filled.url) as conn:
        assert ids(conn, view) == everything


def test_totals_are_of_the_auditor_s_tenants(auditor: Conn) -> None:
    for view in ("tenant_usage", "day_usage"):
        assert auditor.execute(f"SELECT tenant, jobs FROM audit.{view}".encode()).fetchall() == [
            ("acme", 3)
        ]
    for view in ("batch_usage", "batches", "batch_lines"):
        query = f"SELECT count(*) FROM audit.{view}".encode()
        assert auditor.execute(query).fetchone() == (0,)


@pytest.mark.parametrize("question", read(), ids=lambda question: str(question.number))
def test_an_auditor_can_ask_every_documented_question(
    filled: Audited, auditor: Conn, question: Question
) -> None:
    own, foreign = (
        run_query(auditor, with_values(question.sql, {"job": str(filled.ids[job])})).rows
        for job in ("acme0", "plain1")
    )
    if question.about_one_job:
        assert foreign == ()
    assert not {str(i) for name, i in filled.ids.items() if not name.startswith("acme")} & {
        str(value) for row in own for value in row
    }


def test_an_auditor_of_no_tenant_sees_nothing(filled: Audited, login: Login) -> None:
    with psycopg.connect(filled.url, autocommit=True) as conn:
        conn.execute("CREATE ROLE nobody_s LOGIN PASSWORD 'secret' IN ROLE marco_auditor")
    try:
        with psycopg.connect(as_user(filled.url, "nobody_s")) as conn:
            for view in WITH_JOB:
                assert ids(conn, view) == set()
    finally:
        with psycopg.connect(filled.url, autocommit=True) as conn:
            conn.execute("DROP ROLE nobody_s")


@pytest.mark.parametrize("table", TABLES)
def test_an_auditor_reaches_no_table(auditor: Conn, table: str) -> None:
    for statement in (
        f"SELECT * FROM public.{table}",
        f"INSERT INTO public.{table} DEFAULT VALUES",
        f"DELETE FROM public.{table}",
        f"TRUNCATE public.{table}",
        f"CREATE VIEW pg_temp.mine AS SELECT * FROM public.{table}",
    ):
        refused(auditor, statement)


def test_an_auditor_reaches_no_partition(filled: Audited, auditor: Conn) -> None:
    with psycopg.connect(filled.url) as conn:
        names = conn.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'partitions'::regnamespace"
            " AND relkind = 'r'"
        ).fetchall()
    assert len(names) > 12
    for (name,) in names:
        refused(auditor, f"SELECT * FROM partitions.{name}")


@pytest.mark.parametrize("view", VIEWS)
def test_an_auditor_and_the_app_change_no_view(auditor: Conn, app: Conn, view: str) -> None:
    for conn in (auditor, app):
        for statement in (
            f"DELETE FROM audit.{view}",
            f"DROP VIEW audit.{view}",
            f"ALTER VIEW audit.{view} RESET (security_invoker)",
        ):
            refused(
                conn, statement, errors.InsufficientPrivilege, errors.ObjectNotInPrerequisiteState,
                errors.WrongObjectType, errors.FeatureNotSupported,
            )  # fmt: skip


@pytest.mark.parametrize(
    "statement",
    [
        "SET ROLE marco_app",
        "SET ROLE marco_owner",
        "SET ROLE marco_auditor_all",
        "SET SESSION AUTHORIZATION marco_owner",
        "SET session_replication_role = replica",
        "GRANT marco_auditor_all TO CURRENT_USER",
        "INSERT INTO public.auditors VALUES (current_user, 'default')",
        "CREATE TABLE public.mine (a int)",
        "CREATE TABLE audit.mine (a int)",
        "CREATE FUNCTION audit.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "SELECT public.ensure_partitions(1)",
        "COPY (SELECT 1) TO PROGRAM 'true'",
        "SELECT pg_read_file('/etc/passwd')",
        "ALTER TABLE public.jobs DISABLE ROW LEVEL SECURITY",
        "SELECT * FROM audit.jobs FOR UPDATE",
    ],
)
def test_an_auditor_finds_no_way_round(auditor: Conn, statement: str) -> None:
    refused(auditor, statement)


def test_no_setting_of_an_auditor_shows_more(filled: Audited, auditor: Conn) -> None:
    acme = {filled.ids[f"acme{i}"] for i in range(3)}
    try:
        # The group itself is no auditor of any tenant; a made-up setting means nothing.
        auditor.execute("SET ROLE marco_auditor")
        assert ids(auditor, "jobs") == set()
        auditor.execute("RESET ROLE")
        for setting in ("marco.tenant", "app.tenant", "search.tenant"):
            auditor.execute(f"SET {setting} = 'default'".encode())
        assert ids(auditor, "jobs") == acme
        # Without row-level security Postgres refuses rather than shows all.
        auditor.execute("SET row_security = off")
        refused(auditor, "SELECT * FROM audit.jobs")
    finally:
        auditor.execute("RESET ALL")


def test_a_condition_of_an_auditor_s_own_sees_no_other_row(auditor: Conn) -> None:
    """A function that tells what it is given is called for visible rows only."""
    auditor.execute(
        "CREATE FUNCTION pg_temp.seen(text) RETURNS boolean COST 0.0000001 LANGUAGE plpgsql AS"
        " $$ BEGIN IF $1 <> 'acme' THEN RAISE EXCEPTION 'leaked %', $1; END IF; RETURN true;"
        " END $$"
    )
    rows = auditor.execute("SELECT tenant FROM audit.jobs WHERE pg_temp.seen(tenant)").fetchall()
    assert rows == [("acme",)] * 3


def test_statistics_show_an_auditor_no_values(filled: Audited, auditor: Conn) -> None:
    with psycopg.connect(filled.url, autocommit=True) as conn:
        conn.execute("ANALYZE")
    found = auditor.execute(
        "SELECT tablename FROM pg_stats WHERE schemaname IN ('public', 'partitions')"
    ).fetchall()
    assert found == []


@pytest.mark.parametrize("table", schema.insert_only())
def test_the_app_changes_nothing_in_the_trail(app: Conn, table: str) -> None:
    some = table not in ("archives", "redactions")  # nothing was archived or redacted here
    assert app.execute(f"SELECT count(*) > 0 FROM {table}".encode()).fetchone() == (some,)
    for statement in (
        update(table),
        f"DELETE FROM {table}",
        f"TRUNCATE {table}",
        f"ALTER TABLE {table} DISABLE TRIGGER ALL",
        f"DROP TABLE {table}",
    ):
        refused(app, statement)


@pytest.mark.parametrize("table", schema.insert_only())
def test_the_owner_changes_nothing_in_the_trail_by_mistake(login: Login, table: str) -> None:
    with psycopg.connect(login("marco_owner"), autocommit=True) as owner:
        for change in (update(table), f"DELETE FROM {table}", f"TRUNCATE {table} CASCADE"):
            refused(owner, change, errors.RestrictViolation)


def test_the_app_changes_of_a_job_only_what_moves(app: Conn) -> None:
    request = ("id", "tenant", "kind", "payload", "expected", "payload_hash", "batch_id")
    for column in (*request, "salt", "redacted_at"):
        refused(app, f"UPDATE jobs SET {column} = {column}")
    for statement in (
        "DELETE FROM jobs",
        "TRUNCATE jobs CASCADE",
        "INSERT INTO redactions (job_id, commitments) SELECT id, '' FROM jobs LIMIT 1",
        "INSERT INTO auditors VALUES ('x', 'acme')",
        "SELECT * FROM auditors",
        "UPDATE alembic_version SET version_num = '0'",
        "SET ROLE marco_owner",
        "SET session_replication_role = replica",
        "CREATE TABLE public.mine (a int)",
        "SELECT public.make_partition('nodes', 'mine', NULL)",
        "SELECT * FROM partitions.nodes_default",
    ):
        refused(app, statement)


def test_the_app_s_rights_are_enough_for_a_job(database_url: str, login: Login) -> None:
    url = as_user(database_url, str(urlsplit(login("marco_app")).username))
    with closing(Database(url, application="test")) as database:
        (stored,) = insert(database, question())
        settings = settings_for(url, "redis://nobody")
        runner(settings, database, ToyRuntime()).run_next()
        with database.transaction() as conn:
            assert state(conn, stored.id) == "succeeded"
            assert partitions.ensure(conn, ahead=4) != []
            assert conn.execute("SELECT count(*) > 0 FROM audit.tree").fetchone() == (True,)


def test_no_function_of_ours_lends_its_owner_s_rights_to_everybody(filled: Audited) -> None:
    with psycopg.connect(filled.url) as conn:
        lending = conn.execute(
            "SELECT proname, has_function_privilege('public', oid, 'EXECUTE'),"
            " pg_get_userbyid(proowner), proconfig FROM pg_proc WHERE prosecdef"
            " AND pronamespace::regnamespace::text IN ('public', 'audit', 'partitions')"
        ).fetchall()
    assert lending == [
        (
            "ensure_partitions", False, "marco_owner",
            ["search_path=pg_catalog, pg_temp", "lock_timeout=2s"],
        )
    ]  # fmt: skip


def test_a_user_who_may_make_no_roles_still_migrates(services: ServiceUrls) -> None:
    name = f"test_{uuid.uuid4().hex[:12]}"
    user = sql.Identifier(name)
    with scratch_database(services.database_url) as url:
        database = sql.Identifier(urlsplit(url).path[1:])
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'secret'").format(user))
            conn.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(database, user))
        try:
            mine = as_user(url, name)
            assert "permission denied" in (migrations.upgrade(mine) or "")
            with closing(Database(mine, application="test")) as opened:
                insert(opened, question())
            # A superuser makes up for it; from then on the user does all by itself.
            assert migrations.grant_roles(url) is None
            with psycopg.connect(url, autocommit=True) as conn:
                conn.execute(sql.SQL("GRANT marco_owner TO {}").format(user))
            assert migrations.grant_roles(mine) is None
            with psycopg.connect(url) as conn:
                conn.execute("DROP SCHEMA audit CASCADE")
            assert migrations.upgrade(mine) is None
        finally:
            with psycopg.connect(url, autocommit=True) as conn:
                conn.execute(sql.SQL("REASSIGN OWNED BY {} TO CURRENT_USER").format(user))
                conn.execute(sql.SQL("DROP OWNED BY {}").format(user))
                conn.execute(sql.SQL("DROP ROLE {}").format(user))


def test_the_app_and_an_auditor_of_all_can_verify(login: Login) -> None:
    for role in ("marco_app", "marco_auditor_all"):
        report = verify_all(login(role))
        assert (report.ok, report.jobs > 0) == (True, True)
    with pytest.raises(AccessDenied, match="the app's or the owner's"):
        verify_all(login("marco_auditor"))


@pytest.mark.parametrize("table", TABLES)
def test_an_auditor_of_all_changes_nothing(login: Login, table: str) -> None:
    with psycopg.connect(login("marco_auditor_all"), autocommit=True) as conn:
        for statement in (
            f"INSERT INTO public.{table} DEFAULT VALUES",
            f"DELETE FROM public.{table}",
            f"TRUNCATE public.{table}",
            "CREATE TABLE public.mine (a int)",
            "SELECT public.ensure_partitions(1)",
            "SET ROLE marco_app",
        ):
            refused(conn, statement)


def test_an_auditor_sees_the_pauses_that_concern_it(filled: Audited, auditor: Conn) -> None:
    query = "SELECT count(*) FILTER (WHERE paused_at IS NOT NULL), count(*) FROM audit.jobs"
    queued = "SELECT paused_at IS NOT NULL FROM audit.jobs WHERE state = 'queued'"
    with filled.database.transaction() as conn:
        for tenant in ("acme", "default"):
            tenants.set_paused(conn, tenant, paused=True)
        assert conn.execute(queued).fetchone() == (True,)
    try:
        # Its jobs have ended: what is paused no longer waits.
        assert auditor.execute(query).fetchone() == (0, 3)
        refused(auditor, "SELECT * FROM public.tenants")
    finally:
        with filled.database.transaction() as conn:
            for tenant in ("acme", "default"):
                tenants.set_paused(conn, tenant, paused=False)
            assert conn.execute(queued).fetchone() == (False,)
