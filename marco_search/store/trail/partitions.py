"""The trail's partitions: one for each month and table, in a schema that only the owner enters.

Job ids are UUIDs of version 7, which begin with the time: the jobs of a month are a range of
ids. `job_id = X` therefore reads one partition, and a month is dropped without touching a
row of another. What fits no month lands in the default partition: nothing is ever refused.

Rights of the tables hold for their partitions only as long as nobody names a partition;
that is why they have a schema of their own. Triggers for whole statements are not inherited,
so each partition gets its own.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from psycopg import Connection

SCHEMA = "partitions"
MONTHS_AHEAD = 3
"""Made before they are needed: so long may nobody run `ensure`."""

FUNCTION = """
CREATE OR REPLACE FUNCTION public.ensure_partitions(ahead integer) RETURNS text[]
LANGUAGE plpgsql
-- As the owner: whoever writes to the trail may have a month made, and nothing else.
SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s'
AS $$
DECLARE
    made text[] := '{}';
    parent text;
    month timestamp;
    partition text;
BEGIN
    IF ahead NOT BETWEEN 0 AND 24 THEN
        RAISE EXCEPTION 'months ahead must be 0 to 24, not %', ahead;
    END IF;
    -- As migrations do. Readers can't take this lock, and don't wait for it.
    LOCK TABLE public.alembic_version IN SHARE ROW EXCLUSIVE MODE;
    FOR parent IN
        SELECT c.relname FROM pg_partitioned_table AS p JOIN pg_class AS c ON c.oid = p.partrelid
        WHERE c.relnamespace = 'public'::regnamespace ORDER BY c.relname
    LOOP
        FOR month IN
            SELECT NULL UNION ALL
            SELECT date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => i)
            FROM generate_series(0, ahead) AS i
        LOOP
            partition := parent || coalesce(to_char(month, '_YYYY_MM'), '_default');
            CONTINUE WHEN to_regclass(format('partitions.%I', partition)) IS NOT NULL;
            BEGIN
                PERFORM public.make_partition(parent, partition, month);
                made := made || partition;
            EXCEPTION WHEN check_violation THEN
                RAISE WARNING '% is not made: the default partition has rows of it', partition;
            END;
        END LOOP;
    END LOOP;
    RETURN made;
END
$$;

CREATE OR REPLACE FUNCTION public.make_partition(parent text, partition text, month timestamp)
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    bounds text := 'DEFAULT';
BEGIN
    IF month IS NOT NULL THEN
        SELECT format('FOR VALUES FROM (%L) TO (%L)', min(low), max(low)) INTO bounds
        FROM (
            SELECT rpad(lpad(to_hex((extract(epoch FROM m) * 1000)::bigint), 12, '0'), 32, '0')
            FROM unnest(ARRAY[month, month + interval '1 month']) AS m
        ) AS months (low);
    END IF;
    -- Attached rather than made in place, which would lock the whole table against readers.
    EXECUTE format('CREATE TABLE partitions.%I (LIKE public.%I INCLUDING ALL EXCLUDING IDENTITY)',
        partition, parent);
    EXECUTE format('COMMENT ON TABLE partitions.%I IS %L', partition,
        format('Partition of %s: %s', parent,
            coalesce('jobs submitted in ' || to_char(month, 'YYYY-MM'), 'every other job')));
    EXECUTE format('CREATE TRIGGER insert_only BEFORE UPDATE OR DELETE OR TRUNCATE'
        ' ON partitions.%I FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change()', partition);
    EXECUTE format('ALTER TABLE public.%I ATTACH PARTITION partitions.%I %s',
        parent, partition, bounds);
END
$$;

REVOKE ALL ON FUNCTION public.ensure_partitions(integer) FROM PUBLIC;
REVOKE ALL ON FUNCTION public.make_partition(text, text, timestamp) FROM PUBLIC;
"""

DROP_FUNCTION = """
DROP FUNCTION IF EXISTS public.ensure_partitions(integer);
DROP FUNCTION IF EXISTS public.make_partition(text, text, timestamp);
"""


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
