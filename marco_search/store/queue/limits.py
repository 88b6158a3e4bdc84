"""How much may be queued: checked when jobs are submitted, after they were inserted.

The counts include the transaction's own rows, so the check and the insert are one step.
Submissions at the same moment do not see each other, and a producer does not count anew each
time (see Gate), so a limit may be passed by a little: a lock for each submission would cost
more than that is worth.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock

from marco_search.errors import Backpressure, QueueFull, QuotaExceeded
from marco_search.store.db import Conn

RETRY_AFTER_S = 5.0
"""The hint to those who are refused."""
_COUNT_EVERY_S = 5.0
_ALL = ""  # no tenant has this name


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Most queued jobs, of all tenants and of each one that has no limit of its own."""

    all_tenants: int | None = None
    each_tenant: int | None = None


NONE = Limits()


class Gate:
    """Checks what one producer submits. May be shared by threads.

    A count costs milliseconds in a long queue. So it is not made again while no more than a
    tenth of the room it found has been used up here, for a few seconds.
    """

    def __init__(self, allowed: Limits = NONE) -> None:
        self._allowed = allowed
        self._room: dict[str, tuple[float, float]] = {}  # by tenant: jobs, until when
        self._lock = Lock()

    def check(self, conn: Conn, created: Mapping[str, int]) -> None:
        """See that the jobs `created` by tenant, already inserted, are within the limits.

        Raises QueueFull or QuotaExceeded.
        """
        total = sum(created.values())
        if not total:
            return
        if self._allowed.all_tenants is not None:
            limit = self._allowed.all_tenants
            if not self._fits(conn, _ALL, total, limit):
                what = f"the queue holds as many jobs as MARCO_MAX_QUEUED allows ({limit:,})"
                raise _refused(QueueFull, what, total, limit)
        own = _quotas(conn, list(created))
        for tenant, count in created.items():
            quota = own.get(tenant, self._allowed.each_tenant)
            if quota is not None and not self._fits(conn, tenant, count, quota):
                what = f"tenant {tenant!r} has as many queued jobs as it may have ({quota:,})"
                raise _refused(QuotaExceeded, what, count, quota)

    def _fits(self, conn: Conn, tenant: str, count: int, limit: int) -> bool:
        now = time.monotonic()
        with self._lock:
            room, until = self._room.get(tenant, (0.0, now))
            if count <= room and now < until:
                self._room[tenant] = room - count, until
                return True
        left = limit - _queued(conn, tenant, limit)
        with self._lock:
            self._room[tenant] = left / 10, now + _COUNT_EVERY_S
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
            SELECT FROM jobs WHERE state = 'queued' AND published_at IS NULL
                AND (%(tenant)s = '' OR tenant = %(tenant)s)
            LIMIT %(limit)s::bigint + 1) AS unpublished)
        """,
        {"tenant": tenant, "limit": limit},
    ).fetchone()
    assert row is not None
    return int(row[0])


def _quotas(conn: Conn, tenants: list[str]) -> dict[str, int]:
    return dict(
        conn.execute(
            "SELECT name, max_queued FROM tenants WHERE name = ANY (%s) AND max_queued IS NOT NULL",
            [tenants],
        ).fetchall()
    )


def quotas(conn: Conn) -> dict[str, int]:
    """Most queued jobs of each tenant that has a limit of its own, by name."""
    query = "SELECT name, max_queued FROM tenants WHERE max_queued IS NOT NULL ORDER BY name"
    return dict(conn.execute(query).fetchall())


def set_quota(conn: Conn, tenant: str, max_queued: int | None) -> None:
    """Give a tenant a limit of its own; None: that of the settings."""
    conn.execute(
        "INSERT INTO tenants (name, max_queued) VALUES (%(name)s, %(limit)s)"
        " ON CONFLICT (name) DO UPDATE SET max_queued = excluded.max_queued",
        {"name": tenant, "limit": max_queued},
    )


def _refused(error: type[Backpressure], what: str, count: int, limit: int) -> Backpressure:
    if count > limit:
        return error(f"{count:,} jobs at once are more than may ever be queued: {what}", None)
    return error(f"{what}; nothing of {count:,} was submitted", RETRY_AFTER_S)
