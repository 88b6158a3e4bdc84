"""Verification of a whole database, in one snapshot, by several processes.

The chain is read from end to end here; jobs are checked in ranges of ids that hold some
thousand nodes each. All see the same snapshot, so a database in use verifies as well.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, contextmanager
from multiprocessing import get_context, parent_process
from threading import Thread
from types import ModuleType
from uuid import UUID

from psycopg.rows import class_row
from psycopg.sql import SQL, Literal

from marco_search.audit.chain import JOB, Link, check_links
from marco_search.audit.findings import MOST_FINDINGS, Finding, Report
from marco_search.errors import VerificationStopped
from marco_search.store.db import Conn, Database, allow
from marco_search.store.seal import archives
from marco_search.store.seal.verification import check_range

_NODES_A_RANGE = 10_000
"""Some 50 MB of memory for each process."""
_ALONE_BELOW = 4 * _NODES_A_RANGE
"""Starting processes takes a second: not worth it for less."""

Range = tuple[UUID | None, UUID | None]
"""after < id <= last; None: no bound."""


def verify_all(
    url: str, *, processes: int = 2, on_progress: Callable[[int, int], None] | None = None
) -> Report:
    """Check every link of the chain and every job of the database at `url`.

    `on_progress` is called with (jobs done, jobs in all). Raises DatabaseUnavailable,
    SchemaMismatch, and VerificationStopped if one of the processes was killed.
    """
    began = time.perf_counter()
    total = Report()
    with _snapshot(url) as (conn, snapshot):
        chained, findings = _check_chain(conn, total)
        findings += archives.check(conn)
        jobs = conn.execute("SELECT id, nodes FROM public.jobs ORDER BY id").fetchall()
        for part in _checked(url, conn, snapshot, ranges_of(jobs), processes):
            total.merge(part)
            if on_progress:
                on_progress(total.jobs, len(jobs))
    for job_id in sorted(chained - {job_id for job_id, _ in jobs}):
        what = "the chain has the job, the table has not"
        findings.append(Finding("jobs", f"id {job_id}", what, "its row", "none", job_id))
    findings += sorted(total.findings, key=lambda f: f.job_id or UUID(int=0))
    findings.sort(key=lambda f: f.unknown)  # what is wrong before what can't be checked
    total.findings = tuple(dict.fromkeys(findings))[:MOST_FINDINGS]
    total.seconds = time.perf_counter() - began
    return total


@contextmanager
def _snapshot(url: str, name: str | None = None) -> Iterator[tuple[Conn, str]]:
    """A read-only transaction that sees one moment; the one that `name` stands for, if given."""
    database = Database(url, application="marco verify", connections=1)
    with closing(database), database.transaction() as conn:
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        if name is not None:
            conn.execute(SQL("SET TRANSACTION SNAPSHOT {}").format(Literal(name)))
        conn.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        allow(conn, None)
        row = conn.execute("SELECT pg_export_snapshot()").fetchone()
        assert row is not None
        yield conn, row[0]


def _check_chain(conn: Conn, total: Report) -> tuple[set[UUID], list[Finding]]:
    """The jobs that links name, and what is wrong with links. Counts these in `total`."""
    chained: set[UUID] = set()

    def read() -> Iterator[Link]:
        with conn.cursor("chain", row_factory=class_row(Link)) as cursor:
            cursor.itersize = 2000
            for link in cursor.execute("SELECT * FROM public.chain ORDER BY seq"):
                total.links += 1
                if link.kind == JOB and link.job_id is not None:
                    chained.add(link.job_id)
                yield link

    findings = list(check_links(read()))
    return chained, findings


def check_month(conn: Conn, month: archives.Month) -> Iterator[Finding]:
    """What is wrong in a month's jobs."""
    low, high = (UUID(int=bound.int - 1) for bound in (month.first, month.before))
    jobs = conn.execute(
        "SELECT id, nodes FROM public.jobs WHERE id > %s AND id <= %s ORDER BY id", [low, high]
    ).fetchall()
    for part in ranges_of(jobs, low, high):
        for report in check_range(conn, *part):
            yield from report.findings


def ranges_of(
    jobs: Iterable[tuple[UUID, int]], after: UUID | None = None, last: UUID | None = None
) -> list[Range]:
    """Ranges that cover every id with after < id <= last, also those of rows without a job.

    `jobs`: (id, nodes) of those in between, in order of id.
    """
    ranges: list[Range] = []
    nodes = 0
    for job_id, count in jobs:
        nodes += max(count, 20)  # a job without nodes costs a little, too
        if nodes >= _NODES_A_RANGE:
            ranges.append((after, job_id))
            after, nodes = job_id, 0
    return [*ranges, (after, last)]


def _checked(
    url: str, conn: Conn, snapshot: str, ranges: list[Range], processes: int
) -> Iterator[Report]:
    if processes < 2 or len(ranges) * _NODES_A_RANGE <= _ALONE_BELOW:
        yield from (_check(conn, part) for part in ranges)
        return
    # Spawned: a forked process would share connections and threads.
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _open, (url, snapshot))
    try:
        with _main_module_hidden():
            done = pool.map(_check_in_worker, ranges)
        yield from done
    except BrokenProcessPool:
        raise VerificationStopped(
            "a process of the verification ended before it was done: it was killed, perhaps for"
            " want of memory; --processes 1 needs the least"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Processes that are spawned meanwhile do not import this one's main module, nor see Ctrl-C.

    They need nothing of it, and a script without `if __name__ == "__main__"` would run again.
    Ctrl-C is for the parent, which ends them: they inherit that the signal is blocked.
    """
    main = sys.modules["__main__"]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


_worker: Conn | None = None
_kept = ExitStack()


def _open(url: str, snapshot: str) -> None:
    global _worker
    Thread(target=_exit_with_parent, daemon=True).start()
    _worker, _ = _kept.enter_context(_snapshot(url, snapshot))  # closed by the process's end


def _exit_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # an open snapshot would keep vacuum from its work


def _check_in_worker(part: Range) -> Report:
    assert _worker is not None, "the initializer ran"
    return _check(_worker, part)


def _check(conn: Conn, part: Range) -> Report:
    report = Report()
    for job in check_range(conn, *part):
        report.add(job)
    return report
