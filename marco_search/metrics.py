"""Metrics for Prometheus: their definitions, and how a process counts and serves them.

Counting costs next to nothing unless MARCO_METRICS_PORT is set: prometheus_client is not even
loaded. What Postgres and Redis know is not counted but read when asked (`store.reads.exporter`).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, Literal

from marco_search.errors import AddressTaken
from marco_search.settings import Settings

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.registry import Collector

METRICS: Final[list[Metric]] = []
"""All metrics, in the order of docs/metrics.md."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric. Its name ends in its unit: seconds, bytes, ratio (0 to 1)."""

    source: str  #: where it comes from
    kind: Literal["counter", "gauge", "histogram"]
    name: str  #: name of the series in queries
    help: str
    labels: tuple[str, ...] = ()
    values: tuple[str, ...] = ()  #: values of its one label that exist, at 0, from the start
    buckets: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        METRICS.append(self)


_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SLOW = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_FINISHES = ("stop", "length", "failed")
_TENTHS = tuple(i / 10 for i in range(1, 11))
WORKER, SCHEDULER, API, _P = "worker", "scheduler", "API", "Postgres"
_W, _S = WORKER, SCHEDULER

DATABASE_UP = Metric(_P, "gauge", "marco_database_up", "1: Postgres could be read in time; 0: not")
BROKER_UP = Metric(_P, "gauge", "marco_broker_up", "1: Redis answers; 0: not")
JOBS = Metric(
    _P, "gauge", "marco_jobs", "Jobs that have not ended, and dead letters (failed, dead)",
    ("tenant", "state"),
)  # fmt: skip
OLDEST = Metric(
    _P, "gauge", "marco_oldest_due_job_age_seconds",
    "How long the oldest job that any worker may claim has been due; 0: none", ("tenant",),
)  # fmt: skip
MISSING_MODEL = Metric(
    _P, "gauge", "marco_jobs_waiting_for_model",
    "Started jobs that wait for a worker with their model", ("model", "revision"),
)  # fmt: skip
ENDED = Metric(
    _P, "counter", "marco_jobs_ended_total", "Jobs that ended since the exporter was first read",
    ("tenant", "state"),
)  # fmt: skip
RETRIES = Metric(
    _P, "counter", "marco_job_retries_total",
    "Attempts that ended with a transient error, of the jobs that ended", ("tenant",),
)  # fmt: skip
LOSSES = Metric(
    _P, "counter", "marco_job_losses_total",
    "Attempts whose worker was lost, of the jobs that ended", ("tenant",),
)  # fmt: skip
WORKERS = Metric(_P, "gauge", "marco_workers", "Workers that announced themselves in Redis lately")
LINKS = Metric(_P, "counter", "marco_chain_links_total", "Links of the audit chain")
SEALING = Metric(
    _P, "gauge", "marco_seal_waiting", "Transactions that end jobs and wait for the chain's lock"
)
SEAL_LAG = Metric(
    _P, "gauge", "marco_seal_lag_seconds", "How long the first of them has waited; 0: none"
)
UNDELIVERED = Metric(
    _P,
    "gauge",
    "marco_webhook_deliveries_pending",
    "Deliveries to webhooks that have not arrived yet",
)
UNDELIVERED_AGE = Metric(
    _P, "gauge", "marco_webhook_oldest_pending_age_seconds", "Age of the oldest of them; 0: none"
)
TRAIL = Metric(
    _P, "gauge", "marco_trail_bytes", "Size of a table with its indexes, on disk", ("table",)
)
READ = Metric(_P, "gauge", "marco_exporter_read_seconds", "Time taken to read all of the above")

WAIT = Metric(
    _W,
    "histogram",
    "marco_job_wait_seconds",
    "Time from when a job was due to its claim",
    buckets=_SLOW,
)
CLAIM = Metric(
    _W,
    "histogram",
    "marco_claim_seconds",
    "Time that a claim took in Postgres, or until it failed",
    buckets=_FAST,
)
ATTEMPTS = Metric(
    _W, "counter", "marco_attempts_total",
    "Claims by how they ended: a final state, retried, released, lease_lost or left "
    "(Postgres was away)", ("outcome",),
    values=("succeeded", "cancelled", "expired", "failed", "dead", "retried", "released",
            "lease_lost", "left"),
)  # fmt: skip
SEARCHES = Metric(
    _W, "counter", "marco_searches_total",
    "Searches that ended; decided, lead, nothing_new and verified are early stops",
    ("strategy", "stop_reason"),
)  # fmt: skip
SEARCH_SECONDS = Metric(
    _W, "histogram", "marco_search_seconds", "Time that searches took over all attempts",
    buckets=_SLOW,
)  # fmt: skip
CONFIDENCE = Metric(
    _W, "histogram", "marco_answer_confidence_ratio", "Mean confidence of the best answers",
    buckets=_TENTHS,
)  # fmt: skip
ROUNDS = Metric(_W, "counter", "marco_rounds_total", "Rounds stored")
NODES = Metric(_W, "counter", "marco_nodes_total", "Nodes stored")
ROLLOUTS = Metric(
    _W, "counter", "marco_rollouts_total", "Rollouts stored: stop, length or failed", ("finish",),
    values=_FINISHES,
)  # fmt: skip
GENERATED = Metric(
    _W, "counter", "marco_generated_tokens_total",
    "Tokens generated, by how their rollout ended", ("finish",), values=_FINISHES,
)  # fmt: skip
FAILED_TOKENS = Metric(
    _W, "counter", "marco_failed_rollout_tokens_total",
    "Tokens generated by branches that failed or were dropped; not part of any rollout",
)  # fmt: skip
PROMPT = Metric(_W, "counter", "marco_prompt_tokens_total", "Tokens of prefixes that were forked")
CACHED = Metric(
    _W, "counter", "marco_cached_tokens_total", "Of those, served from the prefix cache"
)
BRANCH = Metric(
    _W, "histogram", "marco_branch_seconds", "Time that the runtime took for a branch",
    buckets=_SLOW,
)  # fmt: skip
IN_FLIGHT = Metric(
    _W,
    "gauge",
    "marco_branches_in_flight",
    "Branches requested from the runtime and not answered yet",
)

RECLAIMED = Metric(_S, "counter", "marco_jobs_reclaimed_total", "Jobs reclaimed from lost workers")
PUBLISHED = Metric(
    _S, "counter", "marco_messages_published_total",
    "Messages sent for jobs that became due or whose message was lost",
)  # fmt: skip

DELIVERIES = Metric(
    _S, "counter", "marco_webhook_deliveries_total",
    "Attempts to deliver to a webhook: delivered, retried, or failed for good", ("outcome",),
    values=("delivered", "retried", "failed"),
)  # fmt: skip

REQUESTS = Metric(
    API, "counter", "marco_http_requests_total", "Requests answered", ("method", "route", "status")
)
REQUEST = Metric(
    API, "histogram", "marco_http_request_seconds",
    "Time to answer a request; of a stream, to its end", ("route",), buckets=_SLOW,
)  # fmt: skip

# Another name than before there was a lock: a worker of then may still be counting.
_PREFIX, _ENDED = "marco-counts-", "ended"
_counting: dict[str, Any] = {}  # prometheus_client's objects by name, once there are any


def record(metric: Metric, amount: float = 1.0, *labels: str) -> None:
    """Add `amount`; for a histogram, observe it. Does nothing unless the process is `measured`."""
    found = _counting.get(metric.name)
    if found is not None:
        found = found.labels(*labels) if labels else found
        (found.observe if metric.kind == "histogram" else found.inc)(amount)


@contextmanager
def in_flight(branches: int) -> Iterator[None]:
    """Count this many branches as in flight during the block."""
    record(IN_FLIGHT, branches)
    try:
        yield
    finally:
        record(IN_FLIGHT, -branches)


@contextmanager
def measured(
    settings: Settings,
    sources: Sequence[str],
    exporter: Callable[[], Collector] | None = None,
    *,
    forks: bool = False,
) -> Iterator[None]:
    """During the block this process counts and serves the metrics of `sources`.

    It also serves those of `exporter`. Does nothing unless MARCO_METRICS_PORT is set. With `forks`
    its child processes count, too, in files of a temporary folder. Raises AddressTaken.
    """
    if settings.metrics_port is None:
        yield
        return
    from prometheus_client import CollectorRegistry

    registry = CollectorRegistry()
    with ExitStack() as stack:
        _listen(settings.metrics_host, settings.metrics_port, registry)
        folder = stack.enter_context(_shared_folder()) if forks else None
        count(sources, registry, folder)
        if exporter is not None:
            registry.register(exporter())
        yield


def count(sources: Sequence[str], registry: CollectorRegistry, folder: str | None = None) -> None:
    """Count the metrics of `sources` from now on; `registry` gets what collects them.

    With a `folder` each process that is forked from this one counts in a file of its own there.
    """
    import prometheus_client
    from prometheus_client import values

    # Otherwise each counter has one more series.
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    own = None if folder else registry  # else what adds the files up is registered
    if folder is not None:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        values.ValueClass = values.MultiProcessValue()  # type: ignore[no-untyped-call]
    for metric in METRICS:
        if metric.source in sources:
            more: dict[str, Any] = {}
            if metric.kind == "histogram":
                more = {"buckets": metric.buckets}
            elif metric.kind == "gauge":
                more = {"multiprocess_mode": "livesum"}
            make = getattr(prometheus_client, metric.kind.capitalize())
            about = metric.name, metric.help, metric.labels
            made = _counting[metric.name] = make(*about, registry=own, **more)
            for value in metric.values:  # `increase` does not see the first of a new series
                made.labels(value)
    if folder is not None:
        registry.register(_forked(folder))


@contextmanager
def _shared_folder() -> Iterator[str]:
    """A temporary folder, without those of workers that were killed."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError), _held(left):
            shutil.rmtree(left)
    with ExitStack() as stack:
        while True:
            folder = tempfile.mkdtemp(prefix=_PREFIX)
            with suppress(OSError):  # removed by a worker that took it for such a one
                stack.enter_context(_held(Path(folder)))
                Path(folder).stat()
                break
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """A lock that also the processes hold that are forked inside the block. Raises OSError."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(opened)


def _forked(folder: str) -> Collector:
    """Adds up what this process and those it forked have counted."""
    from prometheus_client.multiprocess import MultiProcessCollector

    one_by_one = Lock()

    class Sums(MultiProcessCollector):
        def collect(self) -> Any:
            with one_by_one:
                _merge_ended(Path(folder))
                # One that a process has just made is empty.
                files = [str(f) for f in Path(folder).glob("*.db") if f.stat().st_size]
                return self.merge(files)  # type: ignore[no-untyped-call]

    return Sums(None, folder)  # type: ignore[no-untyped-call]


def _merge_ended(folder: Path) -> None:
    """Merge the counts of processes that ended into one file, so that files do not accumulate.

    Their branches in flight are dropped.
    """
    from prometheus_client.mmap_dict import MmapedDict

    counts: Any = MmapedDict
    for file in folder.glob("*_*.db"):
        kind, _, pid = file.stem.rpartition("_")
        if pid == _ENDED or _is_ours(int(pid)):
            continue
        if kind in ("counter", "histogram") and file.stat().st_size:
            ended = list(counts.read_all_values_from_file(file))
            with closing(counts(str(folder / f"{kind}_{_ENDED}.db"))) as kept:
                for key, value, at, _ in ended:
                    kept.write_value(key, kept.read_value(key)[0] + value, at)
        file.unlink()


def _is_ours(pid: int) -> bool:
    """Whether this is the process, or one that it forked and that runs."""
    try:
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # now another program's, or unused
        return pid == os.getpid()
    return found is None


def _listen(host: str, port: int, registry: CollectorRegistry) -> None:
    """Serve in a thread. Raises AddressTaken."""
    from prometheus_client import start_http_server

    try:
        server, _ = start_http_server(port, host, registry)
    except (OSError, OverflowError) as error:
        raise AddressTaken(
            f"can't serve metrics at {host}, port {port}: {error}; set MARCO_METRICS_PORT to a "
            "port of this process's own"
        ) from None
    # Otherwise a child would hold the port after this process has died.
    os.register_at_fork(after_in_child=server.socket.close)
