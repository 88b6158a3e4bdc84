"""How much may be queued: checked when jobs are submitted, after they were inserted.

The counts include the transaction's own rows, so the check and the insert are one step.
Submissions at the same moment do not see each other and may go over a limit by what they
bring; a lock for each submission would cost more than that is worth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from marco_search.errors import Backpressure, QueueFull, QuotaExceeded
from marco_search.store.connect import Conn

RETRY_AFTER_S = 5.0
"""The hint to those who are refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Most queued jobs, of all tenants and of each one that has no limit of its own."""

    all_tenants: int | None = None
    each_tenant: int | None = None


NONE = Limits()


def check(conn: Conn, created: Mapping[str, int], allowed: Limits) -> None:
    """See that the jobs `created` by tenant, already inserted, are within the limits.

    Raises QueueFull or QuotaExceeded.
    """
    total = sum(created.values())
    if not total:
        return
    if allowed.all_tenants is not None:
        limit, names = allowed.all_tenants, {"limit": allowed.all_tenants}
        # Counts no further than it must.
        row = conn.execute(
            "SELECT count(*) FROM (SELECT FROM jobs WHERE state = 'queued'"
            " LIMIT %(limit)s::bigint + 1) AS q",
            names,
        ).fetchone()
        assert row is not None
        if row[0] > limit:
            what = f"the queue holds as many jobs as MARCO_MAX_QUEUED allows ({limit:,})"
            raise _refused(QueueFull, what, total, limit)
    own: dict[str, int] = dict(
        conn.execute(
            "SELECT name, max_queued FROM tenants WHERE name = ANY (%s) AND max_queued IS NOT NULL",
            [list(created)],
        ).fetchall()
    )
    for tenant, count in created.items():
        quota = own.get(tenant, allowed.each_tenant)
        if quota is None:
            continue
        row = conn.execute(
            "SELECT count(*) FROM (SELECT FROM jobs WHERE state = 'queued'"
            " AND tenant = %(tenant)s LIMIT %(limit)s::bigint + 1) AS q",
            {"tenant": tenant, "limit": quota},
        ).fetchone()
        assert row is not None
        if row[0] > quota:
            what = f"tenant {tenant!r} has as many queued jobs as it may have ({quota:,})"
            raise _refused(QuotaExceeded, what, count, quota)


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
