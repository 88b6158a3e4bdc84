"""Reads for the console, each in one read-only transaction, and the cache that tabs share."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any, TypeVar, cast
from uuid import UUID

from prometheus_client import CollectorRegistry, generate_latest

from marco_search.audit.findings import JobReport
from marco_search.errors import FileNotFound, JobNotFound
from marco_search.evaluation.statistics import Comparison, compare
from marco_search.render.document import tokens_json, vocabulary_json
from marco_search.store.db import Database, reads_tables
from marco_search.store.queue.batches import Batch
from marco_search.store.reads import job_record, lineage, queries
from marco_search.store.reads.exporter import Exporter
from marco_search.store.reads.job_record import JobRecord, NodeTokens
from marco_search.store.reads.lineage import DataSet, Pair, Revision, SamplePage
from marco_search.store.reads.queries import (
    JobFilter,
    JobPage,
    JobStatus,
    MissingModel,
    Totals,
    WorkerProcess,
)
from marco_search.store.seal import verification

T = TypeVar("T")

_AT_ONCE = 1000  # jobs read at once for a download
_FRESH_S = 1.0
_MOST_KEPT = 64  # answers


@dataclass(frozen=True, slots=True)
class Workers:
    """The workers that announced themselves lately (None: unknown), how many jobs are in each
    state, "paused" among them, the models that jobs wait for, and the processes that claimed jobs.
    """

    present: list[str] | None
    states: dict[str, int]
    missing: list[MissingModel]
    processes: list[WorkerProcess]


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """The revisions that jobs were searched with, and two of them compared, if asked for."""

    revisions: list[Revision]
    old: Revision | None = None
    new: Revision | None = None
    compared: tuple[Comparison, ...] = ()
    changed: tuple[Pair, ...] = ()  #: questions with another best answer, the latest first


class Reader:
    """Reads from `database`, which must have been opened read-only.

    `present` gives the names of the workers that Redis has heard of lately; None: unknown.
    """

    def __init__(
        self, database: Database, present: Callable[[], list[str] | None] = lambda: None
    ) -> None:
        self._database, self._present, self._read = database, present, database.call
        self._metrics = CollectorRegistry()
        self._metrics.register(Exporter(database, present))

    def jobs(self, wanted: JobFilter) -> JobPage:
        """A page of the list, with the sums of the states."""
        with self._database.transaction() as conn:
            counts = queries.counts(conn, wanted)
            return replace(queries.page(conn, wanted), counts=counts)

    def all_jobs(self, wanted: JobFilter, limit: int) -> Iterator[JobStatus]:
        """Up to `limit` jobs that fit. No connection is held while they are sent."""
        while limit > 0:
            found = self._read(queries.page, wanted, limit=min(limit, _AT_ONCE))
            yield from found.jobs
            if not found.older:
                return
            limit -= len(found.jobs)
            wanted = replace(wanted, before=found.jobs[-1].job_id, after=None)

    def matching(self, word: str) -> list[UUID]:
        """At most two jobs whose id begins or ends like this. Raises JobNotFound."""
        return self._read(queries.matching, word)

    def workers(self) -> Workers:
        """The workers, and their current jobs."""
        with self._database.transaction() as conn:
            states, missing = queries.state_counts(conn, None), queries.missing_models(conn)
            return Workers(self._present(), states, missing, queries.workers(conn))

    def metrics(self) -> bytes:
        """The metrics page for Prometheus."""
        return generate_latest(self._metrics)

    def answers(self) -> bool:
        """Check that the database responds. Raises DatabaseUnavailable."""
        return self._read(lambda conn: conn.execute("SELECT 1").fetchone() is not None)

    def batches(self) -> list[tuple[Batch, Totals]]:
        """The latest batches and their sums."""
        return self._read(queries.batches)

    def tenants(self) -> list[tuple[None, Totals]]:
        """Sums of the tenants."""
        return [(None, totals) for totals in self._read(queries.tenants)]

    def models(self, old: str = "", new: str = "") -> Models:
        """Revisions; those named (see `lineage.named_revision`) compared. Raises QueryRefused."""
        with self._database.transaction() as conn:
            known = lineage.revisions(conn)
            if not (old and new):
                return Models(revisions=known)
            sides = lineage.named_revision(known, old), lineage.named_revision(known, new)
            pairs = lineage.pairs(conn, *sides)
        return Models(
            revisions=known,
            old=sides[0],
            new=sides[1],
            compared=tuple(compare(pairs)),
            changed=tuple(pair for pair in pairs if pair.changed),
        )

    def data_sets(
        self, *, offset: int = 0, limit: int = 50, job_id: UUID | None = None
    ) -> list[DataSet]:
        """Data sets, or those that have samples of a job, the latest first."""
        return self._read(lineage.data_sets, offset=offset, limit=limit, job_id=job_id)

    def samples(self, word: str, after: str, before: str | None) -> SamplePage:
        """Samples of the data set of this name. Raises FileNotFound."""
        with self._database.transaction() as conn:
            found = lineage.named(conn, word)
            if found is None:
                raise FileNotFound(f"no data set {word} is in the database")
            return lineage.sample_page(conn, found, after=after, before=before)

    def record(self, job_id: UUID) -> JobRecord:
        """Everything about a job except its tokens. Raises JobNotFound."""
        with self._database.transaction(one_moment=True) as conn:
            return job_record.read(conn, job_id)

    def verified(self, job_id: UUID) -> JobReport | None:
        """The job checked against the chain; None if this login may not read all it takes."""
        # An auditor of some tenants reads views, which are not enough to hash every row.
        enough = self._read(reads_tables)
        return verification.verify_job(self._database, job_id) if enough else None

    def tokens(self, job_id: UUID, node_id: int | None = None) -> dict[int, NodeTokens]:
        """The tokens of one node or of all."""
        return self._read(job_record.tokens, job_id, node_id)

    def node_tokens(self, job_id: UUID, node_id: int) -> dict[str, Any]:
        """A node's tokens and their vocabulary as JSON. Raises JobNotFound, also for a node."""
        found = self.tokens(job_id, node_id)
        if node_id not in found:
            raise JobNotFound(f"job {job_id} has no node {node_id} with tokens")
        row = found[node_id]
        return {"tokens": tokens_json(row), "vocabulary": vocabulary_json([row])}


class Cache:
    """What was read last, by key, so that pages that refresh themselves share one read.

    A page that is opened is read at once. One that refreshes gets what was read less than a
    second ago; one refresh a second reads something newer, however many pages there are, and
    the others get what is there (or nothing, and keep what they show). Shared by threads.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._found: OrderedDict[Hashable, tuple[float, object]] = OrderedDict()
        self._last_refresh = float("-inf")

    def get(self, key: Hashable, read: Callable[[], T], *, refresh: bool = False) -> T | None:
        """What `read` gives or gave. None only for a refresh that has to wait its turn."""
        with self._lock:
            now = self._clock()
            at, value = self._found.get(key, (float("-inf"), None))
            if now - at < _FRESH_S or (refresh and now - self._last_refresh < _FRESH_S):
                return cast("T | None", value)
            if refresh:
                self._last_refresh = now
        fresh = read()
        with self._lock:
            self._found[key] = self._clock(), fresh
            self._found.move_to_end(key)
            while len(self._found) > _MOST_KEPT:
                self._found.popitem(last=False)
        return fresh
