"""The queue beside plain Celery on the same Redis, in the same run: `make bench-queue`."""

from __future__ import annotations

import os
import time

from marco_search.store.db import Database
from marco_search.store.queue import claims, jobs
from marco_search.store.queue.leases import Lease, Worker
from ops.bench.queueing import copying, idle
from ops.bench.queueing.ours import CLAIMED, ours, plain_celery, small
from ops.bench.queueing.place import place

_COMMITS = 50
_WORKER = Worker(name="bench", host="bench", pid=0)


def measure() -> dict[str, float]:
    """Flat figures. Those of a loaded machine mean little: its load is among them."""
    load = os.getloadavg()[0]
    with place() as here:
        figures = ours(here) | plain_celery(here) | idle.statements_per_s(here)
        database = Database(here.urls.database_url, application="marco bench", connections=2)
        try:
            figures |= {"claims_per_s": _claims_per_s(database), "commit_ms": _commit_ms(database)}
            figures |= copying.measure(database)
        finally:
            database.close()
    return figures | {"load_average_before": load, "processors": float(os.cpu_count() or 0)}


def _claims_per_s(database: Database) -> float:
    """Claims that one connection commits, attempt and audit log included."""
    with database.transaction() as conn:
        jobs.insert(conn, [small(i) for i in range(CLAIMED)], tenant="claims")
    began = time.perf_counter()
    for _ in range(CLAIMED):
        with database.transaction() as conn:
            claim = claims.claim_next(conn, _WORKER, lease_s=600)
            assert claim is not None, "there are as many jobs"
            lease = Lease(job_id=claim.job_id, generation=claim.generation, seconds=600)
            claims.begin(conn, lease, _WORKER, None, None)
    return CLAIMED / (time.perf_counter() - began)


def _commit_ms(database: Database) -> float:
    """What one commit of one row takes here: most of it is the disk's flush."""
    began = time.perf_counter()
    for i in range(_COMMITS):
        with database.transaction() as conn:
            jobs.insert(conn, [small(CLAIMED + i)], tenant="commits")
    return 1000 * (time.perf_counter() - began) / _COMMITS
