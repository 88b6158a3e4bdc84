-- What the catalog says of our objects: the questions of marco_search.migrations.derived.
-- {relations}: our tables and views and all partitions, as c in n.

-- triggers
SELECT tgname || ' of ' || tgrelid::regclass, pg_get_triggerdef(t.oid)
FROM pg_trigger AS t JOIN {relations} ON c.oid = t.tgrelid WHERE NOT tgisinternal;

-- guarded: insert-only tables and all their partitions
SELECT c.oid::regclass::text FROM {relations} LEFT JOIN pg_inherits AS i ON i.inhrelid = c.oid
WHERE c.relkind IN ('r', 'p')
    AND (SELECT relname FROM pg_class WHERE oid = coalesce(inhparent, c.oid)) = ANY (%(guarded)s);

-- disabled
SELECT DISTINCT CASE WHEN tgisinternal THEN 'foreign keys' ELSE 'trigger ' || tgname END
    || ' of ' || c.oid::regclass AS name
FROM pg_trigger AS t JOIN {relations} ON c.oid = t.tgrelid
WHERE tgenabled NOT IN ('O', 'A') ORDER BY name;

-- functions: of ours or, while it is being compared, of the temporary schema
SELECT proname || '(' || pg_get_function_identity_arguments(oid) || ')', btrim(prosrc, E' \n'),
    prosecdef, proconfig, prorettype, prolang, provolatile
FROM pg_proc
WHERE CASE WHEN %(made)s THEN pronamespace = pg_my_temp_schema()
    ELSE pronamespace = 'public'::regnamespace AND proname = ANY (%(functions)s)
        OR pronamespace::regnamespace::text IN ('audit', 'partitions') END;

-- views
SELECT relname, relkind, pg_get_viewdef(oid), reloptions FROM pg_class
WHERE relkind <> 'i' AND relnamespace =
    CASE WHEN %(made)s THEN pg_my_temp_schema() ELSE to_regnamespace('audit') END;

-- rules: what does something else in a trigger's place
SELECT c.oid::regclass::text FROM pg_rewrite JOIN {relations} ON c.oid = ev_class
WHERE rulename <> '_RETURN' ORDER BY 1;

-- replica: what switches triggers off
SELECT coalesce(rolname, 'everybody') FROM pg_db_role_setting
LEFT JOIN pg_roles AS r ON r.oid = setrole WHERE setdatabase IN
    (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
AND array_to_string(setconfig, ',') LIKE '%%session_replication_role=%%';

-- policies
SELECT policyname || ' of ' || tablename, permissive, roles, cmd, qual, with_check
FROM pg_policies WHERE tablename = ANY (%(tables)s) AND schemaname::regnamespace =
    CASE WHEN %(made)s THEN pg_my_temp_schema() ELSE 'public'::regnamespace END;

-- security
SELECT relname, relrowsecurity FROM pg_class WHERE relname = ANY (%(tables)s)
    AND relnamespace = 'public'::regnamespace ORDER BY relname;

-- columns: not by LIKE, which takes the right to read the table
SELECT c.relname, string_agg(format('%%I %%s', attname, format_type(atttypid, atttypmod)), ', ')
FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY (%(tables)s)
    AND attnum > 0 AND NOT attisdropped
GROUP BY c.relname;

-- rights
SELECT things.name, CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(x.grantee) END,
    x.privilege_type || CASE WHEN x.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END,
    pg_get_userbyid(things.owner)
FROM (
    SELECT 'table ' || n.nspname || '.' || c.relname, c.relowner,
        coalesce(c.relacl, acldefault('r', c.relowner)) FROM {relations}
    UNION ALL SELECT 'column ' || n.nspname || '.' || c.relname || '.' || attname, c.relowner,
        attacl FROM {relations} JOIN pg_attribute AS a ON a.attrelid = c.oid
        AND attacl IS NOT NULL AND NOT attisdropped
    UNION ALL SELECT 'schema ' || nspname, nspowner,
        coalesce(nspacl, acldefault('n', nspowner)) FROM pg_namespace
        WHERE nspname = ANY (%(schemas)s)
    UNION ALL SELECT 'function public.' || proname || '('
        || pg_get_function_identity_arguments(oid) || ')', proowner,
        coalesce(proacl, acldefault('f', proowner)) FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace AND proname = ANY (%(functions)s)
) AS things (name, owner, acl) CROSS JOIN LATERAL aclexplode(things.acl) AS x;

-- missing_roles
SELECT name FROM unnest(%(roles)s::text[]) AS name WHERE to_regrole(name) IS NULL;

-- superusers: of our roles, and of members of those that do not own
SELECT rolname FROM pg_roles WHERE (rolsuper OR rolcreaterole OR rolbypassrls OR rolreplication)
    AND (rolname = ANY (%(roles)s) OR oid IN (
        SELECT member FROM pg_auth_members WHERE pg_get_userbyid(roleid) = ANY (%(roles)s)
            AND pg_get_userbyid(roleid) <> %(owner)s
    ))
ORDER BY rolname;

-- memberships
SELECT pg_get_userbyid(member), pg_get_userbyid(roleid) FROM pg_auth_members
WHERE pg_get_userbyid(member) = ANY (%(roles)s) ORDER BY 1, 2;
