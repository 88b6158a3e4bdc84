"""Nobody who only reads, and nobody who stands still, keeps others from ending their jobs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import errors

from marco_search import migrations
from marco_search.store.db import Database
from marco_search.store.queue import jobs
from marco_search.store.seal.verification import verify_all
from marco_search.store.trail import partitions
from tests.integration.logins import logins
from tests.integration.toys import insert, question, runner, settings_for, state
from tests.toy import ToyRuntime

# Of this version's predecessors and of the functions that they made.
OLD_LOCKS = (0x6D6172636F2D6368, 0x6D6172636F)
MODES = ("ROW SHARE", "ROW EXCLUSIVE", "SHARE UPDATE EXCLUSIVE", "SHARE", "EXCLUSIVE")


@pytest.mark.parametrize("role", ["marco_auditor", "marco_auditor_all"])
def test_no_lock_that_a_reader_can_take_stops_anybody(database_url: str, role: str) -> None:
    with logins(database_url) as login, psycopg.connect(login(role), autocommit=True) as reader:
        with psycopg.connect(database_url) as conn:
            who = urlsplit(login(role)).username
            conn.execute("INSERT INTO auditors VALUES (%s, 'default')", [who])
            conn.execute("DROP TABLE partitions.nodes_default")
        for mode in MODES:
            for table in ("audit.jobs", "audit.chain", "chain_lock", "chain", "alembic_version"):
                refused = pytest.raises((errors.InsufficientPrivilege, errors.UndefinedTable))
                with refused, reader.transaction():
                    reader.execute(f"LOCK TABLE {table} IN {mode} MODE".encode())
        for strength in ("UPDATE", "NO KEY UPDATE", "SHARE", "KEY SHARE"):
            with pytest.raises((errors.InsufficientPrivilege, errors.FeatureNotSupported)):
                reader.execute(f"SELECT job_id FROM audit.jobs FOR {strength}".encode())  # noqa: S608
        for number in OLD_LOCKS:
            reader.execute("SELECT pg_advisory_lock(%s)", [number])
        reader.execute("SELECT pg_advisory_lock(hashtext('marco ensure_partitions'))")
        with reader.transaction():
            reader.execute("SELECT count(*) FROM audit.jobs, audit.chain, audit.events")
            ends_jobs(login("marco_app"))
            assert migrations.upgrade(database_url) is None
    assert verify_all(database_url).findings == ()


def ends_jobs(url: str) -> None:
    """One job is run, another cancelled, and a partition made, as the app."""
    with closing(Database(url, application="test")) as database:
        done, dropped = insert(database, question(), question(options={"seed": 2}))
        runner(settings_for(url, "redis://nobody"), database, ToyRuntime()).run_next()
        with database.transaction() as conn:
            jobs.cancel(conn, [dropped.id])
        with database.transaction() as conn:
            assert [state(conn, job.id) for job in (done, dropped)] == ["succeeded", "cancelled"]
            assert partitions.ensure(conn) == ["nodes_default"]


STANDS_STILL = """
import os, signal, sys
from contextlib import ExitStack
from uuid import UUID
from marco_search.store.queue import jobs
from marco_search.store.db import Database
with Database(sys.argv[1], application="test").transaction() as conn, ExitStack() as stack:
    jobs.cancel(conn, [UUID(sys.argv[2])])
    if sys.argv[3] == "between what it sends":
        # Answered without the end of a pipeline: no session is idle then.
        stack.enter_context(conn.pipeline())
        conn.execute("SELECT 1")
        conn.pgconn.send_flush_request()
        conn.pgconn.flush()
    print("sealed", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.mark.parametrize("where", ["between transactions' statements", "between what it sends"])
def test_who_stands_still_while_it_seals_is_ended_after_5_seconds(
    database_url: str, where: str
) -> None:
    with closing(Database(database_url, application="test")) as database:
        held, other = insert(database, question(), question(options={"seed": 2}))
        with stopped(database_url, str(held.id), where):
            began = time.monotonic()
            with database.transaction() as conn:
                jobs.cancel(conn, [other.id])
            waited = time.monotonic() - began
        with database.transaction() as conn:
            # It was waited for, and lost what it had not committed.
            assert [state(conn, job.id) for job in (held, other)] == ["queued", "cancelled"]
    assert waited > 3
    assert verify_all(database_url).findings == ()


@contextmanager
def stopped(*arguments: str) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-c", STANDS_STILL, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "sealed\n"
        os.waitpid(process.pid, os.WUNTRACED)
        yield
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_many_may_end_jobs_at_once(database_url: str) -> None:
    with closing(Database(database_url, application="test", connections=8)) as database:
        stored = insert(database, *[question(options={"seed": i}) for i in range(40)])

        def cancel(job: jobs.JobHandle) -> None:
            with database.transaction() as conn:
                jobs.cancel(conn, [job.id])

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(cancel, stored))
    report = verify_all(database_url)
    assert (report.links, report.findings) == (41, ())
