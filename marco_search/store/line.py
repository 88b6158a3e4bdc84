"""Who is next: fair shares between tenants, and an order within each tenant's line.

A message says that some job is due, not which: whoever takes one claims the job that is next.

- Between tenants the one with the fewest running jobs is next; among equals, the one whose
  first job has waited longest. A tenant with a thousand queued jobs holds up nobody else's ten.
- Within a tenant the smallest `turn_at` is next: the time of submission, put back by
  `aging_s` for each level below high. So a normal job goes before the high ones that were
  submitted `aging_s` or more after it: it ages by waiting, and no stream of high ones starves it.

Shares come before priorities: else a tenant would get all by calling its jobs high.

In the line stand the jobs that were published: one in its back-off joins when it is due. The
order needs no recount while jobs wait: it is one index, of which a claim reads the first
entry for each tenant.
"""

from __future__ import annotations

from marco_search.store.connect import Conn

# The line is walked from tenant to tenant, not job by job. ORDER BY names the columns of its
# index, so that no other is taken.
_TENANTS = """
    WITH RECURSIVE named (tenant) AS (
        (SELECT tenant FROM jobs
            WHERE state = 'queued' AND paused_at IS NULL AND published_at IS NOT NULL
            ORDER BY tenant, turn_at LIMIT 1)
        UNION ALL
        SELECT (SELECT tenant FROM jobs
            WHERE state = 'queued' AND paused_at IS NULL AND published_at IS NOT NULL
                AND tenant > named.tenant
            ORDER BY tenant, turn_at LIMIT 1)
        FROM named WHERE named.tenant IS NOT NULL
    ), busy AS (
        SELECT tenant, count(*) AS running FROM jobs WHERE state = 'running' GROUP BY tenant
    )
    SELECT named.tenant
    FROM named LEFT JOIN busy USING (tenant) CROSS JOIN LATERAL (
        SELECT turn_at FROM jobs
        WHERE state = 'queued' AND paused_at IS NULL AND published_at IS NOT NULL
            AND tenant = named.tenant AND run_after <= now()
        ORDER BY turn_at LIMIT 1
    ) AS first
    WHERE named.tenant IS NOT NULL AND NOT EXISTS (
        SELECT FROM tenants WHERE name IN ('', named.tenant) AND paused_at IS NOT NULL
    )
    ORDER BY coalesce(busy.running, 0), first.turn_at
"""

FIRST = """id = (
    SELECT id FROM jobs
    WHERE state = 'queued' AND paused_at IS NULL AND published_at IS NOT NULL
        AND tenant = %(tenant)s AND run_after <= now()
    ORDER BY turn_at LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
)"""
"""Condition on `jobs`: the first due job of a tenant that nobody is claiming just now."""


def tenants(conn: Conn) -> list[str]:
    """The tenants that have a job due and are not paused, the next one first."""
    return [row[0] for row in conn.execute(_TENANTS)]
