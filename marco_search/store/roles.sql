DO $$ DECLARE role text; BEGIN
    -- Roles belong to the server, not to the database: another one may be making them.
    FOREACH role IN ARRAY ARRAY['{owner}', '{app}', '{redactor}', '{auditor}', '{auditor_all}'] LOOP
        BEGIN
            IF to_regrole(role) IS NULL THEN EXECUTE format('CREATE ROLE %I NOLOGIN', role); END IF;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
        END;
    END LOOP;
    IF NOT pg_has_role('{owner}', 'SET') OR NOT pg_has_role('{owner}', 'USAGE') THEN
        EXECUTE format('GRANT {owner} TO %I WITH INHERIT TRUE, SET TRUE', current_user);
    END IF;
    BEGIN
        IF NOT pg_has_role('{auditor_all}', '{auditor}', 'USAGE') THEN
            GRANT {auditor} TO {auditor_all};
        END IF;
        IF NOT pg_has_role('{redactor}', '{app}', 'USAGE') THEN
            GRANT {app} TO {redactor};
        END IF;
    EXCEPTION WHEN unique_violation THEN NULL;
    END;
END $$;

GRANT USAGE, CREATE ON SCHEMA public TO {owner};
REVOKE ALL ON SCHEMA public FROM PUBLIC;

-- Whatever the migrations made belongs to the owner, and only what they made.
DO $$ DECLARE thing record; BEGIN
    FOR thing IN SELECT nspname AS name FROM pg_namespace
        WHERE nspname IN ('audit', 'partitions') AND nspowner <> '{owner}'::regrole
    LOOP EXECUTE format('ALTER SCHEMA %I OWNER TO {owner}', thing.name); END LOOP;
    FOR thing IN
        SELECT c.oid::regclass AS name, CASE relkind WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END AS kind
        FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = relnamespace
        WHERE (nspname IN ('audit', 'partitions') OR nspname = 'public' AND relname IN ({tables}))
            AND relkind IN ('r', 'p', 'v') AND relowner <> '{owner}'::regrole
    LOOP EXECUTE format('ALTER %s %s OWNER TO {owner}', thing.kind, thing.name); END LOOP;
    FOR thing IN
        SELECT oid::regprocedure AS name FROM pg_proc WHERE pronamespace = 'public'::regnamespace
            AND proname IN ('refuse_change', 'ensure_partitions', 'make_partition')
            AND proowner <> '{owner}'::regrole
    LOOP EXECUTE format('ALTER FUNCTION %s OWNER TO {owner}', thing.name); END LOOP;
END $$
