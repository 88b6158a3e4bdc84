"""What tenants may do: quotas of queued jobs, checked at submission, and pauses.

The counts include the transaction's own rows. Concurrent submissions do not see each other, and
a producer does not count every time (see Gate), so a limit may be slightly exceeded.

A paused queued job is not claimed; the worker of a running one finishes its round and releases
it. Deadlines still apply.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from threading import Lock

from marco_search.errors import Backpressure, QueueFull, QuotaExceeded
from marco_search.store.db import Conn, select

EVERYONE = ""
"""Stands for all tenants. No tenant has this name."""

RETRY_AFTER_S = 5.0
"""The hint with a refusal."""
_COUNT_EVERY_S = 5.0


class Gate:
    """Limits what one producer submits. Thread-safe.

    `max_queued` is the limit for all tenants, `tenant_max_queued` that of each without a quota.
    Counting takes milliseconds in a long queue. So a count is reused for a few seconds, as long
    as this producer has used up no more than a tenth of the room that it found.
    """

    def __init__(self, max_queued: int | None = None, tenant_max_queued: int | None = None) -> None:
        self._max_queued = max_queued
        self._tenant_max_queued = tenant_max_queued
        # By tenant and limit: jobs, until when.
        self._room: dict[tuple[str, int], tuple[float, float]] = {}
        self._lock = Lock()

    def check(self, conn: Conn, created: Mapping[str, int]) -> None:
        """Check that the inserted jobs, `created` by tenant, are within the limits.

        Raises QueueFull or QuotaExceeded.
        """
        total, limit = sum(created.values()), self._max_queued
        if total and limit is not None and not self._fits(conn, EVERYONE, total, limit):
            what = f"the queue holds as many jobs as MARCO_MAX_QUEUED allows ({limit:,})"
            raise _refused(QueueFull, what, total, limit)
        own = quotas(conn, list(created)) if total else {}
        for tenant, count in created.items():
            quota = own.get(tenant, self._tenant_max_queued)
            if quota is not None and not self._fits(conn, tenant, count, quota):
                what = f"tenant {tenant!r} has as many queued jobs as it may have ({quota:,})"
                raise _refused(QuotaExceeded, what, count, quota)

    def _fits(self, conn: Conn, tenant: str, count: int, limit: int) -> bool:
        now = time.monotonic()
        with self._lock:
            room, until = self._room.get((tenant, limit), (0.0, now))
            if count <= room and now < until:
                self._room[tenant, limit] = room - count, until
                return True
        left = limit - _queued(conn, tenant, limit)
        with self._lock:
            self._room[tenant, limit] = left / 10, now + _COUNT_EVERY_S
        return left >= 0


def _queued(conn: Conn, tenant: str, limit: int) -> int:
    """Number of queued jobs that are not paused; stops counting beyond the limit."""
    row = conn.execute(
        """
        SELECT (SELECT count(*) FROM (
            SELECT FROM jobs WHERE state = 'queued' AND paused_at IS NULL
                AND published_at IS NOT NULL AND (%(tenant)s = '' OR tenant = %(tenant)s)
            LIMIT %(limit)s::bigint + 1) AS published)
        + (SELECT count(*) FROM (
            SELECT FROM jobs WHERE state = 'queued' AND paused_at IS NULL
                AND published_at IS NULL AND (%(tenant)s = '' OR tenant = %(tenant)s)
            LIMIT %(limit)s::bigint + 1) AS unpublished)
        """,
        {"tenant": tenant, "limit": limit},
    ).fetchone()
    assert row is not None
    return int(row[0])


def _refused(error: type[Backpressure], what: str, count: int, limit: int) -> Backpressure:
    if count > limit:
        return error(f"{count:,} jobs at once are more than may ever be queued: {what}", None)
    return error(f"{what}; nothing of {count:,} was submitted", RETRY_AFTER_S)


def quotas(conn: Conn, tenants: Sequence[str] | None = None) -> dict[str, int]:
    """Quotas of queued jobs by tenant, for tenants that have one; optionally of `tenants` only."""
    rows = conn.execute(
        "SELECT name, max_queued FROM tenants WHERE max_queued IS NOT NULL"
        " AND (%(names)s::text[] IS NULL OR name = ANY (%(names)s)) ORDER BY name",
        {"names": tenants},
    )
    return dict(rows.fetchall())


def set_quota(conn: Conn, tenant: str, max_queued: int | None) -> None:
    """Set a tenant's quota; None: the default of the settings."""
    conn.execute(
        "INSERT INTO tenants (name, max_queued) VALUES (%(name)s, %(limit)s)"
        " ON CONFLICT (name) DO UPDATE SET max_queued = excluded.max_queued",
        {"name": tenant, "limit": max_queued},
    )


def set_paused(conn: Conn, tenant: str, *, paused: bool) -> None:
    """Pause or resume a tenant (or EVERYONE). Pauses of single jobs are kept."""
    conn.execute(
        "INSERT INTO tenants (name, paused_at) VALUES (%(name)s, CASE WHEN %(paused)s THEN now()"
        " END) ON CONFLICT (name) DO UPDATE SET paused_at = CASE WHEN %(paused)s"
        " THEN coalesce(tenants.paused_at, now()) END",
        {"name": tenant, "paused": paused},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """The pauses of a tenant, or of EVERYONE."""

    tenant: str
    since: datetime | None  #: when the tenant was paused; None: it was not
    jobs: int  #: jobs paused individually


def pauses(conn: Conn) -> list[Pause]:
    """All pauses, by tenant; EVERYONE first."""
    source = """(
        SELECT coalesce(name, tenant) AS tenant, paused_at AS since, coalesce(jobs, 0) AS jobs
        FROM (SELECT name, paused_at FROM tenants WHERE paused_at IS NOT NULL) AS whole FULL JOIN (
            SELECT tenant, count(*) AS jobs FROM jobs
            WHERE paused_at IS NOT NULL AND finished_at IS NULL GROUP BY tenant
        ) AS single ON tenant = name
    ) AS paused ORDER BY tenant"""
    return select(conn, Pause, source)
