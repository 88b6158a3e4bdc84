-- Functions of the trail, made by marco_search.migrations.derived.

CREATE OR REPLACE FUNCTION public.refuse_change() RETURNS trigger LANGUAGE plpgsql
AS $$
BEGIN
    -- Whoever may insert there may replace texts, in the same transaction: `marco redact`.
    IF TG_OP = 'UPDATE' AND TG_TABLE_NAME NOT IN ('chain', 'redactions', 'archives') AND EXISTS (
        SELECT FROM public.redactions
        WHERE transaction = pg_current_xact_id_if_assigned()::text::bigint
    ) THEN
        RETURN NULL;
    END IF;
    RAISE EXCEPTION '% of % refused: the audit trail is insert only', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation';
END
$$;

DROP FUNCTION IF EXISTS public.ensure_partitions(integer);
CREATE FUNCTION public.ensure_partitions(ahead integer) RETURNS text[]
LANGUAGE plpgsql
-- As the owner: an app may have a month made, and nothing else.
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

DROP FUNCTION IF EXISTS public.make_partition(text, text, timestamp);
CREATE FUNCTION public.make_partition(parent text, partition text, month timestamp)
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
