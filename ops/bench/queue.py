"""The queue beside plain Celery on the same Redis: `make bench-queue`. See docs/durability.md.

    python -m ops.bench.queue worker PROCESSES      a real worker whose model answers at once
    python -m ops.bench.queue api                   a request to `marco serve`, see `api`
    python -m ops.bench.queue fleet WORKERS SECONDS_A_JOB...     see `fleet` and docs/scaling.md
    python -m ops.bench.queue soak JOBS             see `soak` and docs/scaling.md

The Celery app here is Celery as most use it: late acknowledgement, one message at a time. Its task
notes its number and the time in a Redis list. The broker is that of REDIS_URL.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from http.client import HTTPConnection
from operator import itemgetter
from pathlib import Path
from random import Random
from statistics import fmean, median
from typing import Any, LiteralString
from urllib.parse import urlsplit

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
from ops import environment
from ops.bench import harness
from ops.bench.harness import WORKER, Services, percentile, seconds, wait_until, worker_process
from ops.bench.simulator import InstantRuntime, job
from producer import Producer
from worker import main as worker_main
from worker.finish import finish

SUBMITTED, ONE_BY_ONE, CLAIMED, COMMITS = 1000, 150, 300, 50
PROCESSES, IDLE_S = 2, 10.0
ROLLOUTS, SEARCHES = 256, 6  # of the rounds that are written
QUEUE, DONE = "plain", "plain:done"
WORKER_COMMAND = (sys.executable, "-m", "ops.bench.queue", "worker")

POOL = 32
POLL_S, HEARTBEAT_S = 1.0, 10.0  # as a worker's
AS_MOST = ("step", 16)  # strategy and rollouts of a fleet: 100 nodes of 17 tokens

Figures = dict[str, float]
Due = tuple[float, str, Callable[[], object]]
"""When, in seconds from the begin, a worker does what, and how."""


def measure() -> Figures:
    """All figures. On a loaded machine they mean little: its load is one of them."""
    load = os.getloadavg()[0]
    with harness.scratch_services() as services:
        found = ours(services) | api(services) | plain_celery(services) | idle(services)
        with services.database() as database:
            _insert(database, [small(i) for i in range(CLAIMED)])
            claim_s = seconds(lambda: [_claim(database) for _ in range(CLAIMED)])
            # One commit of one row: most of it is the disk's flush.
            commits = [seconds(lambda: _insert(database, [small(0)])) for _ in range(COMMITS)]
            found |= {"claims_per_s": CLAIMED / claim_s, "commit_ms": 1000 * fmean(commits)}
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
        worker = stack.enter_context(worker_process(services, [*WORKER_COMMAND, str(PROCESSES)]))
        unfinished = "SELECT FROM jobs WHERE finished_at IS NULL LIMIT 1"
        wait_until(lambda: conn.execute(unfinished).fetchone() is None)
        cpu_s = harness.session_cpu_s(worker)
        spent = "SELECT extract(epoch FROM max(finished_at) - min(started_at))::float8 FROM jobs"
        ((drain_s,),) = conn.execute(spent)
        for number in range(ONE_BY_ONE):
            producer.wait(producer.submit(small(SUBMITTED + number)), 60)
        # By one server's clock: from the begin of the submitting transaction to the claim's.
        waits = conn.execute(
            "SELECT extract(epoch FROM started_at - created_at)::float8 FROM jobs"
            " ORDER BY created_at DESC LIMIT %s",
            [ONE_BY_ONE],
        )
        return _figures("", submit_s, drain_s, cpu_s, [wait for (wait,) in waits])


def api(services: Services) -> Figures:
    """A chat completion over `marco serve` beside `submit` and `wait` of the producer, in turns."""
    urls, taken_ms = services.urls, defaultdict[str, list[float]](list)
    env = os.environ | {"DATABASE_URL": urls.database_url, "REDIS_URL": urls.redis_url}
    command = [sys.executable, "-m", "marco_search.cli.main", "serve", "--json", "--port", "0"]
    with contextlib.ExitStack() as stack:
        producer = stack.enter_context(Producer(urls.database_url, urls.redis_url))
        stack.enter_context(worker_process(services, [*WORKER_COMMAND, "1"]))
        server = stack.enter_context(
            environment.running(command, env=env, cwd=harness.ROOT, stdout=subprocess.PIPE)
        )
        assert server.stdout is not None
        started = json.loads(server.stdout.readline())
        client = HTTPConnection(urlsplit(started["address"]).netloc)
        head = {"Authorization": f"Bearer {started['key']}", "Content-Type": "application/json"}

        def ask() -> None:
            body = {"model": "cot", "messages": [{"role": "user", "content": "1?"}]}
            client.request("POST", "/v1/chat/completions", json.dumps(body), head)
            assert json.loads(client.getresponse().read())["choices"]

        ways = {"producer": lambda: producer.wait(producer.submit(small(0)), 60), "api": ask}
        for number in range(ONE_BY_ONE + 10):
            if number == 10:  # connections are open by then
                before_s = harness.session_cpu_s(server.pid)
            for name, way in ways.items():
                taken_ms[name].append(1000 * seconds(way))
        cpu_ms = 1000 * (harness.session_cpu_s(server.pid) - before_s) / ONE_BY_ONE
        client.close()
    figures = {f"{name}_request_p50_ms": median(ms[10:]) for name, ms in taken_ms.items()}
    return figures | {"api_request_cpu_ms": cpu_ms}


def plain_celery(services: Services) -> Figures:
    """The same with plain Celery."""
    os.environ["REDIS_URL"] = services.urls.redis_url  # of the app in this process
    waits = []
    with Redis.from_url(services.urls.redis_url) as client, app.producer_or_acquire() as producer:
        note.apply_async([-1], producer=producer)  # opens the connections
        submit_s = seconds(
            lambda: [note.apply_async([i], producer=producer) for i in range(SUBMITTED)]
        )
        with worker_process(services, plain_worker("plain", PROCESSES)) as worker:
            wait_until(lambda: int(client.llen(DONE)) > SUBMITTED)
            cpu_s = harness.session_cpu_s(worker)
            times = [float(line.split()[1]) for line in client.lrange(DONE, 0, -1)]
            for number in range(ONE_BY_ONE):
                client.delete(DONE)
                began = time.time()
                note.apply_async([number])
                wait_until(lambda: int(client.llen(DONE)) == 1, every_s=0.001)
                waits.append(float(client.lrange(DONE, 0, -1)[0].split()[1]) - began)
        client.delete(DONE)
    return _figures("plain_", submit_s, max(times) - min(times), cpu_s, waits)


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


# -- Plain Celery -----------------------------------------------------------------------


app = Celery("plain")
app.add_defaults(
    lambda: {
        "broker_url": os.environ["REDIS_URL"],
        "task_default_queue": QUEUE,
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_prefetch_multiplier": 1,
        "task_ignore_result": True,
        "broker_connection_retry_on_startup": True,
    }
)


@cache
def _client() -> Redis:
    return Redis.from_url(os.environ["REDIS_URL"])


def _note(number: int) -> None:
    _client().rpush(DONE, f"{number} {time.time()}")


note = app.task(name="plain.note")(_note)


def plain_worker(name: str, processes: int) -> list[str]:
    """The command of a worker of plain Celery."""
    words = ["--concurrency", str(processes), "--hostname", f"{name}@%h", "--loglevel", "ERROR"]
    quiet = ["--without-gossip", "--without-mingle"]
    return [sys.executable, "-m", "celery", "-q", "-A", "ops.bench.queue", "worker", *words, *quiet]


# A statement and its continuation lines, which begin with a tab.
_STATEMENT = re.compile(r"LOG:  (?:statement|execute [^:]+): ([^\n]*(?:\n\t[^\n]*)*)")


def idle(services: Services) -> Figures:
    """Statements a second that two idle workers send to Postgres, counted in its log."""
    log = services.home / "logs" / "postgres.log"
    with contextlib.ExitStack() as stack:
        for _ in range(PROCESSES):
            stack.enter_context(worker_process(services, [*WORKER_COMMAND, "1"]))
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


def _insert(database: Database, work: Sequence[ReasoningJob]) -> None:
    with database.transaction() as conn:
        jobs.insert(conn, work, tenant="bench")


def _claim(database: Database) -> Lease:
    """A claim with attempt and audit log, committed."""
    with database.transaction() as conn:
        claim = leases.claim_next(conn, WORKER, lease_s=600)
        assert claim is not None, "there are as many jobs"
        leases.begin(conn, claim.lease, WORKER, None, None)
    return claim.lease


class RoundsJournal(engine.Journal):
    """A journal that keeps the rounds in a list."""

    def __init__(self) -> None:
        self.kept: list[Round] = []

    def append(self, kept: Round, texts: Mapping[int, str], *, last: bool) -> None:
        """Keep one round."""
        self.kept.append(kept)


def searched(work: ReasoningJob) -> tuple[list[Round], engine.FinishedSearch]:
    """A search with texts as long as a word problem's."""
    runtime, journal = InstantRuntime(), RoundsJournal()
    found = engine.run_search(work, engine.make_plan(work, runtime), runtime, journal)
    return journal.kept, found


def writing(database: Database) -> Figures:
    """Nodes a second: COPY alone, then with the job's row, rollouts, log and commit.

    By the clock the best search counts, by this process's processor time their sum.
    """
    searches = [searched(job(seed, "step", ROLLOUTS))[0] for seed in range(SEARCHES)]
    whole = []
    for kept in searches:
        nodes = tuple(node for r in kept for node in r.nodes)
        rollouts = tuple(rollout for r in kept for rollout in r.rollouts)
        whole.append([Round(number=1, nodes=nodes, rollouts=rollouts)])
    append = partial(trail.append, seconds=0.0)
    all_nodes = [node for (one,) in whole for node in one.nodes]
    found: Figures = {}
    for name, these, write in (
        ("copy", whole, _copy),  # once more below: then connections and tables are warm
        ("copy", whole, _copy),
        ("append", whole, append),
        ("rounds", searches, append),
    ):
        cpu_s = best = 0.0
        for kept in these:
            _insert(database, [small(0)])
            lease, cpu_began, began = _claim(database), time.process_time(), time.perf_counter()
            for one in kept:
                with database.transaction() as conn:
                    write(conn, lease, one)
            best = max(best, sum(len(r.nodes) for r in kept) / (time.perf_counter() - began))
            cpu_s += time.process_time() - cpu_began
        found[f"{name}_nodes_per_s"] = best
        found[f"{name}_nodes_per_client_cpu_s"] = len(all_nodes) / cpu_s
    found["copy_tokens_per_node"] = fmean(len(node.tokens) for node in all_nodes)
    found["copy_nodes_per_round"] = len(all_nodes) / sum(map(len, searches))
    return found


def _copy(conn: psycopg.Connection[Any], lease: Lease, kept: Round) -> None:
    trail.copy_nodes(conn, lease, kept.nodes)


# -- Many jobs --------------------------------------------------------------------------


def soak(number: int) -> Iterator[Figures]:
    """Submit and drain so many jobs by tenths: the same figures of each, to see what grows.

    `search` is from claim to end by Postgres' clock; `other` what another tenant waits for a job
    of its own meanwhile. Memory is of the worker's and of Postgres' processes, shared pages once.
    """
    with harness.scratch_services() as services, contextlib.ExitStack() as stack:
        urls = services.urls
        producer, other = (
            stack.enter_context(Producer(urls.database_url, urls.redis_url, tenant=tenant))
            for tenant in ("many", "few")
        )
        conn = stack.enter_context(psycopg.connect(urls.database_url, autocommit=True))
        worker = stack.enter_context(worker_process(services, [*WORKER_COMMAND, str(PROCESSES)]))
        postmaster = _postmaster(conn)
        ended, spent = 0, (harness.session_cpu_s(worker), _postgres_cpu_s(postmaster))
        for part in range(1, 11):
            more = range((part - 1) * number // 10, part * number // 10)
            producer.submit_many([small(i) for i in more])
            began, waits, before = time.monotonic(), list[float](), ended
            while ended < more.stop:
                waits.append(seconds(lambda: other.wait(other.submit(small(number)), 60)))
                time.sleep(POLL_S)
                ended = _all(conn, "SELECT count(*) FROM jobs WHERE finished_at IS NOT NULL")[0]
            last, spent = spent, (harness.session_cpu_s(worker), _postgres_cpu_s(postmaster))
            lengths = _all(
                conn,
                "SELECT extract(epoch FROM finished_at - started_at)::float8 FROM jobs"
                " WHERE finished_at IS NOT NULL ORDER BY finished_at DESC LIMIT %s",
                ended - before,
            )
            yield {
                "ended": ended,
                "jobs_per_s": (ended - before) / (time.monotonic() - began),
                "worker_cpu_ms_per_job": 1000 * (spent[0] - last[0]) / (ended - before),
                "postgres_cpu_ms_per_job": 1000 * (spent[1] - last[1]) / (ended - before),
                "worker_mib": _pss_mib(worker),
                "postgres_mib": _pss_mib(postmaster),
                "search_p50_ms": 1000 * percentile(lengths, 0.5),
                "search_p99_ms": 1000 * percentile(lengths, 0.99),
                "other_tenant_p50_ms": 1000 * percentile(waits, 0.5),
                "other_tenant_p99_ms": 1000 * percentile(waits, 0.99),
            }
        failed = "SELECT count(*) FROM jobs WHERE finished_at IS NOT NULL AND state <> 'succeeded'"
        assert _all(conn, failed) == [0], "every job succeeded"


def _all(conn: psycopg.Connection[Any], query: LiteralString, *values: Any) -> list[Any]:
    return [value for (value,) in conn.execute(query, values)]


def _pss_mib(parent: int) -> float:
    """Proportional set size of a process and its children."""
    kib = 0
    for pid, stat in harness.processes():
        if parent in (pid, stat[0]):
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
                kib += sum(map(int, re.findall(r"^Pss: +(\d+)", text, re.MULTILINE)))
    return kib / 1024


def _postmaster(conn: psycopg.Connection[Any]) -> int:
    return dict(harness.processes())[conn.info.backend_pid][0]


def _postgres_cpu_s(postmaster: int) -> float:
    """Processor seconds of all of Postgres' processes: the ended ones count for their parent."""
    family = ((pid, s) for pid, s in harness.processes() if postmaster in (pid, s[0]))
    ticks = sum(sum(stat[10 : 14 if pid == postmaster else 12]) for pid, stat in family)
    return ticks / harness.TICKS_A_SECOND


# -- A fleet of workers -----------------------------------------------------------------


def fleet(workers: int, job_s: float) -> Figures:
    """What so many workers ask of one Postgres, each of them searching a job in `job_s` seconds.

    Their transactions are the real ones, the model's time passes by the clock. POOL connections
    serve all of them, as a pooler would. A latency counts from when the transaction was due. All
    have begun after `job_s`; what is measured is half as long after that, or until twice that if
    Postgres falls behind.
    """
    until = 1.5 * job_s
    work = [job(seed, *AS_MOST) for seed in range(SEARCHES)]
    templates = [(each, *searched(each)) for each in work]
    random, late = Random(0), defaultdict[str, list[float]](list)
    with harness.scratch_services() as services, contextlib.ExitStack() as stack:
        database = stack.enter_context(services.database(POOL))
        for _ in range(3):
            _insert(database, [work[i % SEARCHES] for i in range(workers)])
        all_workers = [
            _worker(database, *templates[i % SEARCHES], random.uniform(0, job_s), job_s)
            for i in range(workers)
        ]
        with psycopg.connect(services.urls.database_url) as conn:
            postmaster = _postmaster(conn)
        began = time.monotonic()

        async def serve(worker: Iterator[Due]) -> None:
            for at, name, act in worker:
                if at > until or time.monotonic() - began > job_s + until:
                    return
                await asyncio.sleep(at - (time.monotonic() - began))
                await asyncio.to_thread(act)
                if at > job_s:
                    late[name].append(time.monotonic() - began - at)

        def clocks() -> tuple[float, float, float]:
            return time.monotonic(), _postgres_cpu_s(postmaster), time.process_time()

        async def serve_all() -> list[float]:
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(POOL))
            serving = [asyncio.create_task(serve(worker)) for worker in all_workers]
            await asyncio.sleep(job_s)
            before = clocks()
            await asyncio.gather(*serving)
            return [after - at for after, at in zip(clocks(), before, strict=True)]

        spent, cpu_s, own_s = asyncio.run(serve_all())
    kept = templates[0][1]
    found = {"workers": workers, "seconds_a_job": job_s, "rounds_a_job": len(kept)}
    found["nodes_a_job"] = sum(len(each.nodes) for each in kept)
    for name, times in sorted(late.items()):
        found[f"{name}s_per_s"] = len(times) / spent
        found[f"{name}_p50_ms"] = 1000 * percentile(times, 0.5)
        found[f"{name}_p99_ms"] = 1000 * percentile(times, 0.99)
    found["postgres_ms_a_job"] = 1000 * cpu_s / len(late["end"])
    found |= {"postgres_cores": cpu_s / spent, "own_cores": own_s / spent}
    return found | {"seconds": spent, "load_average": os.getloadavg()[0]}


def _worker(
    database: Database,
    work: ReasoningJob,
    kept: Sequence[Round],
    found: engine.FinishedSearch,
    begin: float,
    job_s: float,
) -> Iterator[Due]:
    """All that a worker asks of Postgres, for ever."""

    def do(act: Callable[[psycopg.Connection[Any]], object]) -> object:
        with database.transaction() as conn:
            return act(conn)

    claims = list[leases.Claim]()

    def claim(conn: psycopg.Connection[Any]) -> None:
        claimed = leases.claim_next(conn, WORKER, lease_s=600)
        assert claimed is not None, "there are as many jobs"
        leases.begin(conn, claimed.lease, WORKER, None, found.plan.to_json())
        claims[:] = [claimed]

    def last(conn: psycopg.Connection[Any]) -> None:
        finish(conn, claims[0], work, found)

    while True:
        yield begin, "claim", partial(do, claim)
        lease, step = claims[0].lease, job_s / (len(kept) + 1)
        appends: list[tuple[float, str, Any]] = [
            (step * i, "commit", partial(trail.append, lease=lease, kept=each, seconds=0.0))
            for i, each in enumerate(kept, 1)
        ]
        beats: list[tuple[float, str, Any]] = [
            (POLL_S * i, "heartbeat", partial(leases.heartbeat, lease=lease))
            if POLL_S * i % HEARTBEAT_S == 0
            else (POLL_S * i, "poll", partial(leases.poll, lease=lease))
            for i in range(1, int(job_s / POLL_S))
        ]
        for after, name, act in sorted([*appends, *beats], key=itemgetter(0)):
            yield begin + after, name, partial(do, act)
        begin += job_s
        yield begin, "end", partial(do, last)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["fleet", workers, *lengths]:
            for each in lengths:
                harness.report(f"fleet-{each}", fleet(int(workers), float(each)))
        case ["api"]:
            with harness.scratch_services() as scratch:
                harness.report("api", api(scratch))
        case ["soak", number]:
            for tenth in soak(int(number)):
                print(json.dumps({k: round(v, 2) for k, v in tenth.items()}), flush=True)
        case ["worker", processes]:
            code = worker_main.run(
                settings.load(),
                processes=int(processes),
                name="bench",
                open_runtime=lambda _: InstantRuntime(),
            )
            sys.exit(code)
        case []:
            harness.report("queue", measure())
        case _:
            sys.exit("usage: make bench-queue [api | soak JOBS | fleet WORKERS SECONDS...]")
