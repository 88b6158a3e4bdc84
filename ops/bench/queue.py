"""The queue beside plain Celery on the same Redis: `make bench-queue`. See docs/durability.md.

    python -m ops.bench.queue worker PROCESSES      a real worker whose model answers at once

The Celery app here is Celery as most use it: late acknowledgement, one message at a time. Its task
notes its number and the time in a Redis list. The broker is that of REDIS_URL.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from statistics import fmean
from typing import Any

import psycopg
from celery import Celery
from redis import Redis

from marco_search import engine, settings
from marco_search.kinds import ReasoningJob
from marco_search.search.tree import Round
from marco_search.store.db import Database
from marco_search.store.queue import jobs, leases
from marco_search.store.queue.leases import Lease
from marco_search.store.trail import trail
from ops.bench import harness
from ops.bench.harness import WORKER, Services, percentile, seconds, wait_until, worker_process
from ops.bench.simulator import InstantRuntime, job
from producer import Producer
from worker import main as worker_main

SUBMITTED, ONE_BY_ONE, CLAIMED, COMMITS = 1000, 150, 300, 50
PROCESSES, IDLE_S = 2, 10.0
ROLLOUTS, SEARCHES = 256, 6  # of the rounds that are written
QUEUE, DONE = "plain", "plain:done"

Figures = dict[str, float]


def measure() -> Figures:
    """All figures. On a loaded machine they mean little: its load is one of them."""
    load = os.getloadavg()[0]
    with harness.scratch_services() as services:
        found = ours(services) | plain_celery(services) | idle(services)
        with contextlib.closing(services.database()) as database:
            found |= {"claims_per_s": claims_per_s(database), "commit_ms": commit_ms(database)}
            found |= writing(database)
    return found | {"load_average_before": load, "processors": float(os.cpu_count() or 0)}


def small(number: int) -> ReasoningJob:
    """A job of one rollout: the time it takes is the queue's."""
    options = {"strategy": "cot", "seed": number}
    return ReasoningJob.model_validate({"question": f"{number}?", "options": options})


def ours(services: Services) -> Figures:
    """Submit many and drain them; then one by one on an idle worker."""
    urls, many = services.urls, [small(i) for i in range(SUBMITTED)]
    with contextlib.ExitStack() as stack:
        producer = stack.enter_context(Producer(urls.database_url, urls.redis_url))
        conn = stack.enter_context(psycopg.connect(urls.database_url, autocommit=True))
        producer.wait(producer.submit_many([]), 1)  # opens the connections
        submit_s = seconds(lambda: producer.submit_many(many))
        command = [sys.executable, "-m", "ops.bench.queue", "worker", str(PROCESSES)]
        worker = stack.enter_context(worker_process(services, command))
        wait_until(lambda: not _row(conn, "SELECT count(*) FROM jobs WHERE finished_at IS NULL"))
        cpu_s = harness.session_cpu_s(worker)
        drain_s = _row(
            conn, "SELECT extract(epoch FROM max(finished_at) - min(started_at))::float8 FROM jobs"
        )
        for number in range(ONE_BY_ONE):
            producer.wait(producer.submit(small(SUBMITTED + number)), 60)
        # By one server's clock: from the begin of the submitting transaction to the claim's.
        waits = conn.execute(
            "SELECT extract(epoch FROM started_at - created_at)::float8 FROM jobs"
            " ORDER BY created_at DESC LIMIT %s",
            [ONE_BY_ONE],
        ).fetchall()
    return _figures("", submit_s, drain_s, cpu_s, [wait for (wait,) in waits])


def plain_celery(services: Services) -> Figures:
    """The same with plain Celery."""
    os.environ["REDIS_URL"] = services.urls.redis_url  # of the app in this process
    with Redis.from_url(services.urls.redis_url) as client, app.producer_or_acquire() as producer:
        note.apply_async([-1], producer=producer)  # opens the connections
        submit_s = seconds(
            lambda: [note.apply_async([i], producer=producer) for i in range(SUBMITTED)]
        )
        with worker_process(services, plain_worker("plain", PROCESSES)) as worker:
            wait_until(lambda: int(client.llen(DONE)) > SUBMITTED)
            cpu_s = harness.session_cpu_s(worker)
            times = [float(line.split()[1]) for line in client.lrange(DONE, 0, -1)]
            waits = [_plain_wait(client, i) for i in range(ONE_BY_ONE)]
        client.delete(DONE)
    return _figures("plain_", submit_s, max(times) - min(times), cpu_s, waits)


def _plain_wait(client: Redis, number: int) -> float:
    client.delete(DONE)
    began = time.time()
    note.apply_async([number])
    wait_until(lambda: int(client.llen(DONE)) == 1, every_s=0.001)
    return float(client.lrange(DONE, 0, -1)[0].split()[1]) - began


def _figures(
    prefix: str, submit_s: float, drain_s: float, cpu_s: float, waits: Sequence[float]
) -> Figures:
    return {
        f"{prefix}submit_per_s": SUBMITTED / submit_s,
        f"{prefix}jobs_per_s": SUBMITTED / drain_s,
        f"{prefix}overhead_ms_per_job": 1000 * PROCESSES * drain_s / SUBMITTED,
        f"{prefix}overhead_cpu_ms_per_job": 1000 * cpu_s / SUBMITTED,
        f"{prefix}claim_p50_ms": 1000 * percentile(waits, 0.5),
        f"{prefix}claim_p99_ms": 1000 * percentile(waits, 0.99),
    }


def _row(conn: psycopg.Connection[Any], query: str) -> float:
    row = conn.execute(query.encode()).fetchone()
    assert row is not None, "it aggregates"
    return float(row[0])


# -- Plain Celery -----------------------------------------------------------------------


def _config() -> dict[str, Any]:
    return {
        "broker_url": os.environ["REDIS_URL"],
        "task_default_queue": QUEUE,
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_prefetch_multiplier": 1,
        "task_ignore_result": True,
        "broker_connection_retry_on_startup": True,
    }


@cache
def _client() -> Redis:
    return Redis.from_url(os.environ["REDIS_URL"])


def _note(number: int) -> None:
    _client().rpush(DONE, f"{number} {time.time()}")


app = Celery("plain")
app.add_defaults(_config)
note = app.task(name="plain.note")(_note)


def plain_worker(name: str, processes: int) -> list[str]:
    """The command of a worker of plain Celery."""
    words = ["--concurrency", str(processes), "--hostname", f"{name}@%h", "--loglevel", "ERROR"]
    quiet = ["--without-gossip", "--without-mingle"]
    return [sys.executable, "-m", "celery", "-q", "-A", "ops.bench.queue", "worker", *words, *quiet]


# -- An idle fleet ----------------------------------------------------------------------

# A statement and its continuation lines, which begin with a tab.
_STATEMENT = re.compile(r"LOG:  (?:statement|execute [^:]+): ([^\n]*(?:\n\t[^\n]*)*)")


def idle(services: Services) -> Figures:
    """Statements a second that two idle workers send to Postgres, counted in its log."""
    log = services.home / "logs" / "postgres.log"
    command = [sys.executable, "-m", "ops.bench.queue", "worker", "1"]
    with contextlib.ExitStack() as stack:
        for _ in range(PROCESSES):
            stack.enter_context(worker_process(services, command))
        conn = stack.enter_context(psycopg.connect(services.urls.database_url, autocommit=True))
        conn.execute("ALTER SYSTEM SET log_statement = 'all'")
        conn.execute("SELECT pg_reload_conf()")
        time.sleep(3.0)  # until logging has begun and the workers have connected
        before, began = statements(log.read_text()), time.perf_counter()
        time.sleep(IDLE_S)  # what is measured
        count, spent = statements(log.read_text()) - before, time.perf_counter() - began
        conn.execute("ALTER SYSTEM RESET log_statement")
        conn.execute("SELECT pg_reload_conf()")
    return {"idle_workers": PROCESSES, "idle_statements_per_s": count / spent}


def statements(log: str) -> int:
    """Statements in a log of Postgres, without empty ones and BEGIN, COMMIT and ROLLBACK."""
    texts = _STATEMENT.findall(log)
    return sum(text.strip() not in ("", "BEGIN", "COMMIT", "ROLLBACK") for text in texts)


# -- Claims, commits and rounds on one connection ---------------------------------------


def claims_per_s(database: Database) -> float:
    """Claims that one connection commits, with attempt and audit log."""
    _insert(database, [small(i) for i in range(CLAIMED)])
    return CLAIMED / seconds(lambda: [_claim(database) for _ in range(CLAIMED)])


def commit_ms(database: Database) -> float:
    """One commit of one row: most of it is the disk's flush."""
    return 1000 * fmean(seconds(lambda: _insert(database, [small(0)])) for _ in range(COMMITS))


def _insert(database: Database, work: Sequence[ReasoningJob]) -> None:
    with database.transaction() as conn:
        jobs.insert(conn, work, tenant="bench")


def _claim(database: Database) -> Lease:
    with database.transaction() as conn:
        claim = leases.claim_next(conn, WORKER, lease_s=600)
        assert claim is not None, "there are as many jobs"
        leases.begin(conn, claim.lease, WORKER, None, None)
    return claim.lease


class RoundsJournal(engine.Journal):
    """A journal that keeps the rounds in a list."""

    def __init__(self) -> None:
        self.kept: list[Round] = []

    def append(self, kept: Round, texts: Mapping[int, str]) -> None:
        """Keep one round."""
        self.kept.append(kept)


def rounds(seed: int, rollouts: int = ROLLOUTS) -> list[Round]:
    """The rounds of a search with texts as long as a word problem's."""
    runtime, journal, work = InstantRuntime(), RoundsJournal(), job(seed, "step", rollouts)
    engine.run_search(work, engine.make_plan(work, runtime), runtime, journal)
    return journal.kept


def writing(database: Database) -> Figures:
    """Nodes a second: COPY alone, then with the job's row, rollouts, log and commit.

    By the clock the best search counts, by this process's processor time their sum.
    """
    searches = [rounds(seed) for seed in range(SEARCHES)]
    whole = [[merged(kept)] for kept in searches]
    all_nodes = [node for (kept,) in whole for node in kept.nodes]
    found: Figures = {}
    for name, these, write in (
        ("copy", whole, _copy),  # once more below: then connections and tables are warm
        ("copy", whole, _copy),
        ("append", whole, _append),
        ("rounds", searches, _append),
    ):
        timed = [_written(database, kept, write) for kept in these]
        cpu_s = sum(cpu_s for _, cpu_s in timed)
        found[f"{name}_nodes_per_s"] = max(nodes_per_s for nodes_per_s, _ in timed)
        found[f"{name}_nodes_per_client_cpu_s"] = len(all_nodes) / cpu_s
    found["copy_tokens_per_node"] = fmean(len(node.tokens) for node in all_nodes)
    found["copy_nodes_per_round"] = len(all_nodes) / sum(map(len, searches))
    return found


def merged(kept: Sequence[Round]) -> Round:
    """All rounds of a search as one."""
    nodes, rollouts = [n for r in kept for n in r.nodes], [o for r in kept for o in r.rollouts]
    return Round(number=1, nodes=tuple(nodes), rollouts=tuple(rollouts))


Write = Callable[[psycopg.Connection[Any], Lease, Round], None]


def _written(database: Database, kept: Sequence[Round], write: Write) -> tuple[float, float]:
    """(nodes a second, processor seconds) of one search."""
    _insert(database, [small(0)])
    lease, cpu_began, began = _claim(database), time.process_time(), time.perf_counter()
    for done in kept:
        with database.transaction() as conn:
            write(conn, lease, done)
    spent = time.perf_counter() - began
    return sum(len(r.nodes) for r in kept) / spent, time.process_time() - cpu_began


def _copy(conn: psycopg.Connection[Any], lease: Lease, kept: Round) -> None:
    trail.copy_nodes(conn, lease, kept.nodes)


def _append(conn: psycopg.Connection[Any], lease: Lease, kept: Round) -> None:
    trail.append(conn, lease, kept, seconds=0.0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        code = worker_main.run(
            settings.load(),
            processes=int(sys.argv[2]),
            name="bench",
            open_runtime=lambda _: InstantRuntime(),
        )
        sys.exit(code)
    harness.report("queue", measure())
