"""Verification: fetches what is stored, and has it checked (marco_search.audit.verify).

A whole database is verified in one snapshot, by several processes: one in use verifies as well.
The chain is read from end to end; jobs are checked in ranges of ids that hold some thousand nodes
each.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from multiprocessing import get_context, parent_process
from threading import Thread, current_thread, main_thread
from types import ModuleType
from typing import Any
from uuid import UUID

from psycopg import errors
from psycopg.rows import class_row, dict_row

from marco_search.audit.chain import Link, check_link, check_links
from marco_search.audit.findings import MOST_FINDINGS, Finding, JobReport, Report
from marco_search.audit.formats import FORMATS, KEYED, NEWEST
from marco_search.audit.proofs import Proof, unpack
from marco_search.audit.verify import Evidence, Redaction, SealedRun, check_job
from marco_search.errors import JobNotFound, VerificationStopped
from marco_search.store.db import Conn, Database, select
from marco_search.store.seal import archives
from marco_search.store.seal.seals import LINKS, NEAREST
from marco_search.store.trail import rows

_NODES_A_RANGE = 10_000
"""Some 50 MB of memory for each process."""
_ALONE_BELOW = 4 * _NODES_A_RANGE
"""Starting processes takes a second: not worth it for less."""

Range = tuple[UUID | None, UUID | None]
"""after < id <= last; None: no bound."""


def verify_job(database: Database, job_id: UUID) -> JobReport:
    """Check one job: all its rows, its links and the links right before them.

    The chain as a whole is `verify_all`'s. Raises JobNotFound if neither tables nor chain
    know the job.
    """
    with database.snapshot() as conn:
        for report in _check(conn, rows.of_jobs([job_id]), [job_id]):
            return report
    raise JobNotFound(f"no job {job_id}")


def check_one(conn: Conn, job_id: UUID) -> tuple[JobReport, list[SealedRun]]:
    """The report on a job of the table, and its links."""
    where = rows.of_jobs([job_id])
    return next(_check(conn, where)), list(_sealed_runs(conn, [job_id])[job_id])


def check_jobs(conn: Conn, job_ids: Sequence[UUID]) -> Iterator[JobReport]:
    """Check some jobs, as `verify_job` does each."""
    return _check(conn, rows.of_jobs(job_ids), job_ids)


def check_range(conn: Conn, after: UUID | None, last: UUID | None) -> Iterator[JobReport]:
    """Check all jobs with after < id <= last that the tables know, in order of id."""
    return _check(conn, rows.between(after, last))


def _check(conn: Conn, where: rows.Where, also: Collection[UUID] = ()) -> Iterator[JobReport]:
    """Reports on the jobs with such rows, and on those of `also` that the chain has."""
    newest = FORMATS[NEWEST].kinds
    found, salts = rows.read(conn, newest, where)
    sealed = _sealed_runs(conn, {*found, *also})
    formats = {run.link.format for runs in sealed.values() for run in runs} & FORMATS.keys()
    by_format = {
        number: found if kinds == newest else rows.read(conn, kinds, where)[0]
        for number in sorted(formats | {NEWEST})
        for kinds in [FORMATS[number].kinds]
    }
    visits = _shown_visits(conn, found)
    redactions, redacted_at = _redactions(conn, found)
    archived = archives.listed(conn)
    for job_id in sorted(found.keys() | sealed.keys()):
        yield check_job(
            Evidence(
                job_id=job_id,
                rows={number: its.get(job_id, {}) for number, its in by_format.items()},
                sealed=sealed.get(job_id, ()),
                salt=salts.get(job_id),
                redaction=redactions.get(job_id),
                redacted_at=redacted_at.get(job_id),
                archives=[a for a in archived if a.first <= job_id < a.before],
                visits=visits.get(job_id, {}),
            )
        )


def _redactions(
    conn: Conn, job_ids: Collection[UUID]
) -> tuple[dict[UUID, Redaction], dict[UUID, datetime]]:
    """The rows of redactions of these jobs, and when the jobs' own rows say they were redacted."""
    rows = f"SELECT job_id, by, commitments, {NEAREST.format('at')} FROM public.redactions"  # noqa: S608
    times = f"SELECT id, {NEAREST.format('redacted_at')} FROM public.jobs"  # noqa: S608  # constants
    ids = [list(job_ids)]
    redactions = {
        job_id: Redaction(by=by, commitments=kept, at=at)
        for job_id, by, kept, at in conn.execute(f"{rows} WHERE job_id = ANY (%s)".encode(), ids)
    }
    marked = f"{times} WHERE id = ANY (%s) AND redacted_at IS NOT NULL"
    return redactions, dict(conn.execute(marked.encode(), ids).fetchall())


def _sealed_runs(conn: Conn, job_ids: Collection[UUID]) -> Mapping[UUID, list[SealedRun]]:
    """The links of each job with their proofs, each checked against the link before it."""
    source = f"""{LINKS} WHERE seq IN (
        SELECT unnest(ARRAY[seq, seq - 1]) FROM public.chain WHERE job_id = ANY (%s)
    ) ORDER BY seq"""  # noqa: S608  # constants
    links = select(conn, Link, source, [list(job_ids)])
    with conn.cursor(row_factory=dict_row, binary=True) as kept:
        seqs = [link.seq for link in links]
        kept.execute("SELECT * FROM public.proofs WHERE seq = ANY (%s)", [seqs])
        proofs = {row["seq"]: row for row in kept}
    by_seq = {link.seq: link for link in links}
    found: dict[UUID, list[SealedRun]] = defaultdict(list)
    for link in links:
        if link.job_id in job_ids and link.job_id is not None:
            proof = proof_from(proofs.get(link.seq), link.format)
            finding = check_link(link, by_seq.get(link.seq - 1))
            found[link.job_id].append(SealedRun(link=link, proof=proof, finding=finding))
    return found


def proof_from(row: Mapping[str, Any] | None, number: int) -> Proof | None:
    """The proof in a row of proofs, if there is one and its format is known."""
    if row is None or number not in FORMATS:
        return None
    keys = {kind: row[f"{kind}s"] for kind in KEYED}
    return unpack(keys, row["hashes"], FORMATS[number].kinds)


def _shown_visits(
    conn: Conn, job_ids: Collection[UUID]
) -> Mapping[UUID, Mapping[int, tuple[int, float]]]:
    """Visit counts and values as the view shows them, by job and node; of a job whose sums are
    beyond every number none.
    """
    with suppress(errors.NumericValueOutOfRange):
        return _visits(conn, job_ids)
    found: dict[UUID, dict[int, tuple[int, float]]] = {}
    for job_id in job_ids:
        with suppress(errors.NumericValueOutOfRange):
            found |= _visits(conn, [job_id])
    return found


def _visits(conn: Conn, job_ids: Collection[UUID]) -> dict[UUID, dict[int, tuple[int, float]]]:
    shown: dict[UUID, dict[int, tuple[int, float]]] = defaultdict(dict)
    with conn.transaction(), conn.cursor(binary=True) as cursor:
        for job_id, node_id, visits, value in cursor.execute(
            "SELECT job_id, node_id, visits, value FROM audit.node_stats WHERE job_id = ANY (%s)",
            [list(job_ids)],
        ):
            shown[job_id][node_id] = (visits, value)
    return shown


def verify_all(
    url: str, *, processes: int = 2, on_progress: Callable[[int, int], None] | None = None
) -> Report:
    """Check every link of the chain and every job of the database at `url`.

    `on_progress` is called with (jobs done, jobs in all). Raises DatabaseUnavailable,
    SchemaMismatch, and VerificationStopped if one of the processes was killed.
    """
    began = time.perf_counter()
    total = Report()
    with _database(url).snapshot() as conn:
        chained, findings = _check_chain(conn, total)
        findings += archives.check(conn)
        findings += _of_nothing(conn)
        jobs = conn.execute("SELECT id, nodes FROM public.jobs ORDER BY id").fetchall()
        for part in _in_processes(url, conn, ranges_of(jobs), processes):
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


def _database(url: str) -> Database:
    return Database(url, application="marco verify")


def _check_chain(conn: Conn, total: Report) -> tuple[set[UUID], list[Finding]]:
    """The jobs that links name, and what is wrong with links. Counts these in `total`."""
    chained: set[UUID] = set()

    def read() -> Iterator[Link]:
        with conn.cursor("chain", row_factory=class_row(Link)) as cursor:
            cursor.itersize = 2000
            for link in cursor.execute(f"SELECT * FROM {LINKS} ORDER BY seq".encode()):  # noqa: S608
                total.links += 1
                if link.job_id is not None:
                    chained.add(link.job_id)
                yield link

    findings = list(check_links(read()))
    return chained, findings


def _of_nothing(conn: Conn) -> Iterator[Finding]:
    """Rows of redactions and proofs that are about no job and no link."""
    for (job_id,) in conn.execute(
        "SELECT job_id FROM public.redactions WHERE NOT EXISTS"
        " (SELECT FROM public.jobs WHERE id = job_id)"
    ):
        yield Finding(
            "redactions", f"job {job_id}", "there is no such job", "none", "a row", job_id
        )
    for (seq,) in conn.execute(
        "SELECT seq FROM public.proofs WHERE NOT EXISTS"
        " (SELECT FROM public.chain WHERE chain.seq = proofs.seq)"
    ):
        yield Finding("proofs", f"seq {seq}", "there is no such link", "none", "a row")


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


def _in_processes(url: str, conn: Conn, ranges: list[Range], processes: int) -> Iterator[Report]:
    if processes < 2 or len(ranges) * _NODES_A_RANGE <= _ALONE_BELOW:
        yield from (_report(conn, part) for part in ranges)
        return
    (snapshot,) = conn.execute("SELECT pg_export_snapshot()").fetchone() or ("",)
    # Spawned: a forked process would share connections and threads.
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _open, (url, snapshot))
    try:
        with _main_module_hidden():
            # Not `map`: when one fails it cancels the others while the pool's thread fails them,
            # which may end that thread before it has ended the processes (CPython 3.11).
            found = [pool.submit(_check_in_worker, part) for part in ranges]
        for one in found:
            yield one.result()
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
    Ctrl-C is for the parent, which ends them: they inherit that the signal is blocked. Here it
    waits until they have been started: half a start would leave a child's traceback.
    """
    main = sys.modules["__main__"]
    interrupted: list[int] = []
    handler = None
    if current_thread() is main_thread():
        # Blocking is not enough: Python acts on a signal that another of its threads receives.
        handler = signal.signal(signal.SIGINT, lambda number, _: interrupted.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
        if interrupted and callable(handler):
            handler(signal.SIGINT, None)


_worker: Conn | None = None
_kept = ExitStack()


def _open(url: str, snapshot: str) -> None:
    global _worker
    Thread(target=_exit_with_parent, daemon=True).start()
    _worker = _kept.enter_context(_database(url).snapshot(snapshot))  # closed by the process's end


def _exit_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # an open snapshot would keep vacuum from its work


def _check_in_worker(part: Range) -> Report:
    assert _worker is not None, "the initializer ran"
    return _report(_worker, part)


def _report(conn: Conn, part: Range) -> Report:
    report = Report()
    for job in check_range(conn, *part):
        report.add(job)
    return report
