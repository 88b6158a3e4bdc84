"""What tenants may do: quotas of queued jobs, checked at submission, and pauses.

The counts include the transaction's own rows. Submissions at the same moment do not see each
other, and a producer does not count each time (see Gate), so a limit may be passed by a little.

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
"""In place of a tenant's name: all tenants. No tenant has this name."""

RETRY_AFTER_S = 5.0
"""The hint with a refusal."""
_COUNT_EVERY_S = 5.0


class Gate:
    """Checks what one producer submits. May be shared by threads.

    `max_queued` jobs of all tenants, `tenant_max_queued` of each that has no quota of its own.
    A count costs milliseconds in a long queue. So it is not made again while no more than a
    tenth of the room it found has been used up here, for a few seconds.
    """

    def __init__(self, max_queued: int | None = None, tenant_max_queued: int | None = None) -> None:
        self._max_queued = max_queued
        self._tenant_max_queued = tenant_max_queued
        # By tenant and limit: jobs, until when.
        self._room: dict[tuple[str, int], tuple[float, float]] = {}
        self._lock = Lock()

    def check(self, conn: Conn, created: Mapping[str, int]) -> None:
        """See that the jobs `created` by tenant, already inserted, are within the limits.

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
    """Queued jobs that are not paused; counts no further than it must."""
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
    """Most queued jobs of each tenant that has a quota of its own, or of those of `tenants`."""
    rows = conn.execute(
        "SELECT name, max_queued FROM tenants WHERE max_queued IS NOT NULL"
        " AND (%(names)s::text[] IS NULL OR name = ANY (%(names)s)) ORDER BY name",
        {"names": tenants},
    )
    return dict(rows.fetchall())


def set_quota(conn: Conn, tenant: str, max_queued: int | None) -> None:
    """Give a tenant a quota of its own; None: that of the settings."""
    conn.execute(
        "INSERT INTO tenants (name, max_queued) VALUES (%(name)s, %(limit)s)"
        " ON CONFLICT (name) DO UPDATE SET max_queued = excluded.max_queued",
        {"name": tenant, "limit": max_queued},
    )


def set_paused(conn: Conn, tenant: str, *, paused: bool) -> None:
    """Pause or resume a tenant (or EVERYONE). Pauses of single jobs stay."""
    conn.execute(
        "INSERT INTO tenants (name, paused_at) VALUES (%(name)s, CASE WHEN %(paused)s THEN now()"
        " END) ON CONFLICT (name) DO UPDATE SET paused_at = CASE WHEN %(paused)s"
        " THEN coalesce(tenants.paused_at, now()) END",
        {"name": tenant, "paused": paused},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """What is paused of a tenant, or of EVERYONE."""

    tenant: str
    since: datetime | None  #: when the tenant was paused; None: it was not
    jobs: int  #: paused one by one


def pauses(conn: Conn) -> list[Pause]:
    """All that is paused, by tenant; EVERYONE first."""
    source = """(
        SELECT coalesce(name, tenant) AS tenant, paused_at AS since, coalesce(jobs, 0) AS jobs
        FROM (SELECT name, paused_at FROM tenants WHERE paused_at IS NOT NULL) AS whole FULL JOIN (
            SELECT tenant, count(*) AS jobs FROM jobs
            WHERE paused_at IS NOT NULL AND finished_at IS NULL GROUP BY tenant
        ) AS single ON tenant = name
    ) AS paused ORDER BY tenant"""
    return select(conn, Pause, source)
