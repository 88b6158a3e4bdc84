"""Who is next: fair shares between tenants, and an order within each tenant's line.

A message says that some job is due, not which: whoever takes one claims the job that is next.

- Between tenants the one with the fewest running jobs is next; among equals, the one whose
  first job has waited longest. A tenant with a thousand queued jobs holds up nobody else's ten.
- Within a tenant the smallest `turn_at` is next: the time of submission, put back by
  `aging_s` for each level below high. So a normal job goes before the high ones that were
  submitted `aging_s` or more after it: it ages by waiting, and no stream of high ones starves it.

Shares come before priorities: else a tenant would get all by calling its jobs high.

A job that was begun goes on with the model it was begun on, and with no other. So each tenant's
line is several in the index: that of the jobs not begun yet, and one for each model. A worker
reads the first and its own model's; what waits for another model holds up nobody.

In the line stand the jobs that were published: one in its back-off joins when it is due. The
order needs no recount while jobs wait: it is one index, of which a claim reads the first
entries for each tenant. Jobs of the same moment, as those of a batch are, go by their ids.
"""

from __future__ import annotations

from marco_search.store.db import Conn

# The line is walked from tenant to tenant, not job by job. ORDER BY names the columns of its
# index, so that no other is taken.
_TURNS = """
    WITH RECURSIVE named (tenant) AS (
        (SELECT tenant FROM jobs
            WHERE state = 'queued' AND paused_at IS NULL AND published_at IS NOT NULL
            ORDER BY tenant, begun_on, turn_at, id LIMIT 1)
        UNION ALL
        SELECT (SELECT tenant FROM jobs
            WHERE state = 'queued' AND paused_at IS NULL AND published_at IS NOT NULL
                AND tenant > named.tenant
            ORDER BY tenant, begun_on, turn_at, id LIMIT 1)
        FROM named WHERE named.tenant IS NOT NULL
    ), busy AS (
        SELECT tenant, count(*) AS running FROM jobs WHERE state = 'running' GROUP BY tenant
    )
    SELECT named.tenant, line.begun_on
    FROM named LEFT JOIN busy USING (tenant)
    CROSS JOIN unnest(%(begun_on)s::text[]) AS line (begun_on) CROSS JOIN LATERAL (
        SELECT turn_at, id FROM jobs
        WHERE state = 'queued' AND paused_at IS NULL AND published_at IS NOT NULL
            AND tenant = named.tenant AND begun_on = line.begun_on AND run_after <= now()
        ORDER BY turn_at, id LIMIT 1
    ) AS first
    WHERE named.tenant IS NOT NULL AND NOT EXISTS (
        SELECT FROM tenants WHERE name IN ('', named.tenant) AND paused_at IS NOT NULL
    )
    ORDER BY coalesce(busy.running, 0), first.turn_at, first.id
"""

FIRST = """id = (
    SELECT id FROM jobs
    WHERE state = 'queued' AND paused_at IS NULL AND published_at IS NOT NULL
        AND tenant = %(tenant)s AND begun_on = %(begun_on)s AND run_after <= now()
    ORDER BY turn_at, id LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
)"""
"""Condition on `jobs`: the first due job of such a line that nobody is claiming just now."""

NOT_BEGUN = ""
"""The line of the jobs that any model may begin."""


def key(model: str, revision: str) -> str:
    """The line of the jobs that were begun on this model."""
    return f"{model} {revision}"


def turns(conn: Conn, begun_on: str) -> list[tuple[str, str]]:
    """(tenant, line) of each tenant that is not paused and has a job due for a worker with the
    model `begun_on` (see `key`), the next one first.
    """
    lines = list({NOT_BEGUN, begun_on})
    return [(tenant, line) for tenant, line in conn.execute(_TURNS, {"begun_on": lines})]


def park(conn: Conn, begun_on: str) -> None:
    """A worker with this model found nothing to do: mark one due job that needs another.

    It stays in the line, but no message is sent for it any more (see `outbox`): each came for
    one job, and this worker has used one up.
    """
    conn.execute(
        """
        UPDATE jobs SET parked_at = now() WHERE id = (
            SELECT id FROM jobs
            WHERE state = 'queued' AND begun_on <> '' AND parked_at IS NULL
                AND begun_on <> %(begun_on)s AND published_at IS NOT NULL AND paused_at IS NULL
                AND run_after <= now()
            LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
        )
        """,
        {"begun_on": begun_on},
    )


def wake(conn: Conn, begun_on: str, limit: int = 100) -> None:
    """A worker has this model: have messages sent again for jobs that waited for it."""
    conn.execute(
        """
        UPDATE jobs SET parked_at = NULL, published_at = NULL WHERE id IN (
            SELECT id FROM jobs
            WHERE state = 'queued' AND parked_at IS NOT NULL AND begun_on = %(begun_on)s
            LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED
        )
        """,
        {"begun_on": begun_on, "limit": limit},
    )
