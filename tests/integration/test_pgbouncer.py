"""Through PgBouncer in transaction mode, which gives every transaction another session.

Skipped where the program `pgbouncer` is not installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import errors

from marco_search import doctor, migrations
from marco_search.local import ServiceUrls
from marco_search.store.db import SCHEMA_REVISION, Database
from marco_search.store.seal.verification import verify_all
from producer import Producer
from tests.integration.logins import logins
from tests.integration.toys import free_port, insert, marco, question, runner, settings_for
from tests.toy import ToyRuntime

PROGRAM = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
SESSIONS = 3
CONFIG = """
[databases]
* = host={host} port={port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = trust
auth_file = {users}
pool_mode = transaction
default_pool_size = {sessions}
"""

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="pgbouncer is not installed")


@pytest.fixture
def pooled(database_url: str, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """URLs of the owner's and of an app's login through a pooler."""
    with logins(database_url) as login:
        urls = [database_url, login("marco_app")]
        users = tmp_path / "users.txt"
        users.write_text("".join(f'"{u.username}" "{u.password}"\n' for u in map(urlsplit, urls)))
        server, listen = urlsplit(database_url), free_port()
        config = tmp_path / "pgbouncer.ini"
        values = {"host": server.hostname, "port": server.port, "listen": listen}
        config.write_text(CONFIG.format(**values, users=users, sessions=SESSIONS))
        for path in (config, users, tmp_path, tmp_path.parent, tmp_path.parent.parent):
            path.chmod(0o755)  # root's pgbouncer becomes another user
        user = ["-u", "nobody"] if os.geteuid() == 0 else []
        process = subprocess.Popen(
            [str(PROGRAM), *user, str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            owner, app = (through(url, listen) for url in urls)
            wait_for(owner)
            yield owner, app
        finally:
            process.terminate()
            process.wait(timeout=10)


def through(url: str, port: int) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{parts.username}@127.0.0.1:{port}"))


def wait_for(url: str) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            psycopg.connect(url, connect_timeout=2).close()
            return
        except psycopg.OperationalError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_jobs_are_run_through_it_and_other_programs_notice_nothing(
    pooled: tuple[str, str], services: ServiceUrls
) -> None:
    owner, app = pooled
    assert marco(owner, "migrate").returncode == 0
    settings = settings_for(app, services.redis_url)
    with closing(Database(app, application="test", connections=4)) as database:
        stored = insert(database, *[question(options={"seed": i}) for i in range(12)])
        with Producer(settings=settings) as producer, ThreadPoolExecutor(4) as pool:
            for _ in stored:
                pool.submit(runner(settings, database, ToyRuntime()).run_next)
            results = producer.wait([job.id for job in stored], timeout_s=120)
    assert {result.state for result in results} == {"succeeded"}
    report = verify_all(owner)
    assert (report.jobs, report.findings) == (12, ())
    for url in pooled:
        assert_untouched(url)
    assert doctor.guards(settings_for(owner, "redis://x")).ok
    assert "pooler" in doctor.postgres(settings_for(owner, "redis://x")).detail


def assert_untouched(url: str) -> None:
    """No session of the pooler has kept a setting, a statement or a table of ours."""
    with ExitStack() as stack:
        for _ in range(SESSIONS):  # all at once: each has another
            conn = stack.enter_context(psycopg.connect(url, prepare_threshold=None))
            names = ("search_path", "statement_timeout", "lock_timeout", "transaction_timeout")
            values = [conn.execute(f"SHOW {name}".encode()).fetchone() for name in names]
            assert values == [('"$user", public',), ("0",), ("0",), ("0",)]
            for kept in ("pg_prepared_statements", "pg_listening_channels()"):
                assert conn.execute(f"SELECT count(*) FROM {kept}".encode()).fetchone() == (0,)  # noqa: S608
            temporary = "SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema()"
            assert conn.execute(temporary).fetchone() == (0,)


def test_a_reader_s_transactions_are_read_only_there_too(pooled: tuple[str, str]) -> None:
    with closing(Database(pooled[0], application="test", read_only=True)) as database:
        for _ in range(8):  # more often than a statement is run before it is prepared
            with database.transaction() as conn:
                assert conn.execute("SELECT count(*) FROM jobs").fetchone() == (0,)
        with pytest.raises(errors.ReadOnlySqlTransaction), database.transaction() as conn:
            conn.execute("DELETE FROM tenants")


def test_an_empty_database_is_migrated_through_it(
    pooled: tuple[str, str], services: ServiceUrls
) -> None:
    with psycopg.connect(pooled[0], autocommit=True) as conn:
        conn.execute("DROP SCHEMA audit, public, partitions CASCADE")
        conn.execute("CREATE SCHEMA public")
    migrations.upgrade(pooled[0])
    assert migrations.current(pooled[0]) == SCHEMA_REVISION
    assert_untouched(pooled[0])
