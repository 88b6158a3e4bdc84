"""What Postgres and Redis know, for Prometheus: read when asked, at a bounded cost.

A read takes part of a second at most on a large database: it goes by indexes, and ends are
counted from the chain, of which each has a link, from where the last read stopped.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from marco_search import metrics
from marco_search.errors import MarcoError
from marco_search.metrics import Metric
from marco_search.store.db import Conn, Database
from marco_search.store.queue.scheduling import DUE
from marco_search.store.queue.states import FINAL
from marco_search.store.reads import queries

log = logging.getLogger(__name__)

EVERY_S = 5.0
"""What was read is given again for so long, or for ten times what reading it took."""
_SPARING, _LONGEST_S = 10.0, 60.0
_WAIT_S = 8.0  # Prometheus gives up after 10
MOST_TENANTS = 50
"""So many tenants, the first seen, have a label of their own; the others are OTHERS."""
OTHERS = "(others)"
_MOST_LINKS = 20_000  # of the chain, in one read
_TABLES = ("jobs", "attempts", "audit_log", "nodes", "rollouts", "answers", "chain", "proofs")

_OPEN = "SELECT tenant, state, paused_at, parked_at, run_after FROM jobs WHERE"
_QUEUE = f"""
    SELECT tenant,
        CASE WHEN state = 'queued' AND paused_at IS NOT NULL THEN 'paused' ELSE state END, count(*),
        coalesce(extract(epoch FROM now() - min(run_after)
            FILTER (WHERE parked_at IS NULL AND {DUE})), 0)::float8
    FROM ({_OPEN} state = 'queued' AND published_at IS NULL
        UNION ALL {_OPEN} state = 'queued' AND published_at IS NOT NULL
        UNION ALL {_OPEN} state = 'running'
        UNION ALL {_OPEN} state IN ('failed', 'dead')) AS open
    GROUP BY 1, 2
"""  # noqa: S608  # constants
# A link is visible only when all before it are: they are appended under a lock.
_HEAD = "SELECT seq FROM chain ORDER BY seq DESC LIMIT 1"
_ENDED = """
    SELECT tenant, state, count(*), sum(failures)::float8, sum(losses)::float8
    FROM chain JOIN jobs ON jobs.id = chain.job_id
    WHERE seq > %s AND seq <= %s AND chain.kind = 'job' AND finished_at IS NOT NULL
    GROUP BY tenant, state
"""
_SEALING = """
    SELECT count(*), coalesce(extract(epoch FROM clock_timestamp() - min(waitstart)), 0)::float8
    FROM pg_locks WHERE relation = 'public.chain_lock'::regclass AND NOT granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
_UNDELIVERED = """
    SELECT count(*), coalesce(extract(epoch FROM now() - min(created_at)), 0)::float8
    FROM webhook_deliveries WHERE state = 'pending'
"""
_SIZES = """
    SELECT name, (pg_total_relation_size(name::regclass) + coalesce((
        SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree(name::regclass)
        WHERE isleaf AND relid <> name::regclass), 0))::float8
    FROM unnest(%s::text[]) AS name
"""

Values = Mapping[tuple[str, ...], float]


class Exporter(Collector):
    """A collector of prometheus_client's. Shared by threads."""

    def __init__(
        self,
        database: Database,
        present: Callable[[], Sequence[str] | None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`present` gives the names of the workers that Redis has heard of; None: it is away."""
        self._database, self._present, self._clock = database, present, clock
        self._lock = Lock()
        self._next = float("-inf")
        self._families: list[Family] = []
        self._reader = ThreadPoolExecutor(1, "metrics")
        self._reading: Future[tuple[list[Family], float]] | None = None
        self._asker = ThreadPoolExecutor(1, "metrics")
        self._asking: Future[list[Family]] | None = None
        self._tenants: set[str] = set()
        self._seen: int | None = None  # the last link whose job was counted
        self._ended: Counter[tuple[str, ...]] = Counter()
        self._retries: Counter[tuple[str, ...]] = Counter()
        self._losses: Counter[tuple[str, ...]] = Counter()

    def collect(self) -> Iterable[Family]:
        """All of it, as it is now or was a moment ago; little, if Postgres does not answer."""
        with self._lock:
            if self._clock() >= self._next:
                # A frozen server is noticed later than Prometheus waits: read on without it.
                self._reading = self._reading or self._reader.submit(self._timed)
                self._asking = self._asking or self._asker.submit(self._broker)
                try:
                    found, took = self._reading.result(_WAIT_S)
                except TimeoutError:
                    return [family(metrics.DATABASE_UP, {(): 0})]
                self._reading = None
                try:
                    self._families = [*found, *self._asking.result(0.5)]
                    self._asking = None
                except TimeoutError:
                    self._families = [*found, family(metrics.BROKER_UP, {(): 0})]
                self._next = self._clock() + min(max(EVERY_S, _SPARING * took), _LONGEST_S)
            return self._families

    def _timed(self) -> tuple[list[Family], float]:
        began = self._clock()
        try:
            with self._database.transaction() as conn:
                found = [
                    *self._queue(conn),
                    *self._chain(conn),
                    *_webhooks(conn),
                    *self._trail(conn),
                ]
        except Exception as error:
            if not isinstance(error, MarcoError):
                log.exception("metrics")
            return [family(metrics.DATABASE_UP, {(): 0})], 0.0  # asked again soon
        took = self._clock() - began
        own = family(metrics.DATABASE_UP, {(): 1}), family(metrics.READ, {(): took})
        return [*found, *own], took

    def _broker(self) -> list[Family]:
        present = self._present()
        up = family(metrics.BROKER_UP, {(): present is not None})
        return [up] if present is None else [up, family(metrics.WORKERS, {(): len(present)})]

    def _tenant(self, name: str) -> str:
        if len(self._tenants) < MOST_TENANTS:
            self._tenants.add(name)
        return name if name in self._tenants else OTHERS

    def _queue(self, conn: Conn) -> list[Family]:
        jobs: Counter[tuple[str, ...]] = Counter()
        oldest: dict[tuple[str, ...], float] = defaultdict(float)
        for name, state, count, age_s in conn.execute(_QUEUE.encode()):
            tenant = self._tenant(name)
            jobs[tenant, state] += count
            oldest[tenant,] = max(oldest[tenant,], age_s)
        # Zero, not absent, once there was one: a graph and an alert see it fall.
        for tenant in self._tenants:
            oldest[tenant,] += 0
            for state in ("queued", "running", "paused", "failed", "dead"):
                jobs[tenant, state] += 0
        missing = queries.missing_models(conn)
        return [
            family(metrics.JOBS, jobs),
            family(metrics.OLDEST, oldest),
            family(metrics.MISSING_MODEL, {(m.model, m.revision): m.jobs for m in missing}),
        ]

    def _chain(self, conn: Conn) -> list[Family]:
        (head,) = conn.execute(_HEAD).fetchone() or (-1,)
        seen = head if self._seen is None else self._seen
        known_tenants = frozenset(self._retries)  # their ends were reported, if only as 0
        upto = min(head, seen + _MOST_LINKS)
        for name, state, count, failures, losses in conn.execute(_ENDED, [seen, upto]).fetchall():
            tenant = self._tenant(name)
            self._ended[tenant, state] += count
            self._retries[tenant,] += failures
            self._losses[tenant,] += losses
        self._seen = upto
        for tenant in self._tenants | {tenant for tenant, _ in self._ended}:
            self._retries[tenant,] += 0
            self._losses[tenant,] += 0
            for state in FINAL:
                self._ended[tenant, str(state)] += 0

        def shown(counts: Values) -> Values:
            # A new tenant begins at 0: `increase` does not see the first value of a series.
            return {labels: n if labels[:1] in known_tenants else 0 for labels, n in counts.items()}

        return [
            family(metrics.ENDED, shown(self._ended)),
            family(metrics.RETRIES, shown(self._retries)),
            family(metrics.LOSSES, shown(self._losses)),
            family(metrics.LINKS, {(): head + 1}),
        ]

    def _trail(self, conn: Conn) -> list[Family]:
        waiting, lag_s = conn.execute(_SEALING).fetchone() or (0, 0.0)
        sizes: Values = {(name,): size for name, size in conn.execute(_SIZES, [list(_TABLES)])}
        return [
            family(metrics.SEALING, {(): waiting}),
            family(metrics.SEAL_LAG, {(): lag_s}),
            family(metrics.TRAIL, sizes),
        ]


def _webhooks(conn: Conn) -> list[Family]:
    if conn.execute("SELECT has_table_privilege('webhook_deliveries', 'SELECT')").fetchone() != (
        True,
    ):
        return []  # an auditor's login, as a console may have
    count, age_s = conn.execute(_UNDELIVERED).fetchone() or (0, 0.0)
    return [
        family(metrics.UNDELIVERED, {(): count}),
        family(metrics.UNDELIVERED_AGE, {(): age_s}),
    ]


def family(metric: Metric, values: Values) -> Family:
    """A metric with its values by labels."""
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    made = kind(metric.name, metric.help, labels=metric.labels)
    for labels, value in values.items():
        made.add_metric(labels, value)
    return made
