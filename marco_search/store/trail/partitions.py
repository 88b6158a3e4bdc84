"""The trail's partitions: one for each month and table, in a schema that only the owner enters.

Job ids are UUIDs of version 7, which begin with the time: the jobs of a month are a range of
ids. `job_id = X` therefore reads one partition, and a month is dropped without touching a row of
another. Rows that fit no month go to the default partition: nothing is ever refused.

Rights on a table do not protect a partition that is accessed by name, so partitions are in a
separate schema. Statement triggers are not inherited, so each partition gets its own
(migrations/functions.sql).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from psycopg import Connection

SCHEMA = "partitions"
MONTHS_AHEAD = 3
"""Created ahead of time: for this long nobody needs to run `ensure`."""


def ensure(conn: Connection[Any], *, ahead: int = MONTHS_AHEAD) -> list[str]:
    """Make what is missing of this month's partitions and the next ones'; their names.

    Milliseconds when there is nothing to make. It waits 2 s at most for the locks, then
    raises psycopg's LockNotAvailable: try again later.
    """
    row = conn.execute("SELECT public.ensure_partitions(%s)", [ahead]).fetchone()
    assert row is not None, "a function returns a row"
    return list(row[0])


def lower_bound(month: datetime) -> UUID:
    """The lowest id that a job submitted at or after the beginning of `month` can have."""
    start = datetime(month.year, month.month, 1, tzinfo=UTC)
    return UUID(int=int(start.timestamp() * 1000) << 80)
