"""Who may do what: roles of the database, and row-level security.

    PREFIX_owner        owns everything; migrations and archiving run as a member of it
    PREFIX_app          producers, workers, console: adds to the trail, changes jobs, no more
    PREFIX_auditor      reads the views, of the tenants that `auditors` lists for its login
    PREFIX_auditor_all  reads the views, of all tenants, and what `marco verify` takes: all rows

None of them can log in. A login is made by whoever runs the server, as a member of one.

An auditor's views are `security_invoker`, so it needs to be allowed to select from the
tables too; but it may not enter their schema, and so can't name them. (An auditor of all
tenants may: it sees every row anyway, and can verify with a login that changes nothing.)
Whose rows it sees hangs on `current_user`, which no client can set to a role it is not a
member of. No function that auditors may call runs with another's rights.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from marco_search.errors import InvalidSettings
from marco_search.store import guards, views
from marco_search.store.schema import Base
from marco_search.store.trail import partitions
from marco_search.store.views.view import literal

ROLES = ("owner", "app", "auditor", "auditor_all")

FIXED = frozenset(
    {"id", "tenant", "kind", "payload", "expected", "payload_hash", "idempotency_key"}
    | {"batch_id", "created_at"}
)
"""What the app may write of a job once, at its submission."""


DROP_POLICIES = """
DO $$ DECLARE held record; BEGIN
    FOR held IN SELECT tablename FROM pg_policies
        WHERE schemaname = 'public' AND policyname = 'own_tenants'
    LOOP EXECUTE format('DROP POLICY own_tenants ON public.%I', held.tablename); END LOOP;
END $$"""
"""Drops the auditors' policies, which refer to columns. The app's stay: it goes on working."""


def name(prefix: str, role: str) -> str:
    """The name of one of ROLES. Raises InvalidSettings for a prefix that can't be used."""
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,39}", prefix):
        raise InvalidSettings(
            "MARCO_ROLE_PREFIX: must be 1 to 40 lower-case letters, digits and underscores, "
            "and begin with no digit"
        )
    return f"{prefix}_{role}"


def statements(prefix: str) -> Iterator[str]:
    """SQL that makes the roles and gives each its rights; running it again changes nothing.

    To be run in one transaction, by a superuser, or by a member of the owner that may create
    roles or finds them made.
    """
    owner, app, auditor, auditor_all = (name(prefix, role) for role in ROLES)
    for role in (owner, app, auditor, auditor_all):
        yield _create(role)
    yield _join(owner)
    yield _join_role(auditor, auditor_all)
    yield f"GRANT USAGE, CREATE ON SCHEMA public TO {owner}"
    yield "REVOKE ALL ON SCHEMA public FROM PUBLIC"
    yield from _owned(owner)
    yield from _app(app)
    yield from _auditors(auditor, auditor_all)


def _create(role: str) -> str:
    # Roles belong to the server, not to the database: another one may be making them.
    return f"""
DO $$ BEGIN
    IF to_regrole('{role}') IS NULL THEN CREATE ROLE {role} NOLOGIN; END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
END $$"""


def _join(role: str) -> str:
    return f"""
DO $$ BEGIN
    IF NOT pg_has_role('{role}', 'SET') OR NOT pg_has_role('{role}', 'USAGE') THEN
        EXECUTE format('GRANT {role} TO %I WITH INHERIT TRUE, SET TRUE', current_user);
    END IF;
END $$"""


def _join_role(group: str, member: str) -> str:
    return f"""
DO $$ BEGIN
    IF NOT pg_has_role('{member}', '{group}', 'USAGE') THEN
        GRANT {group} TO {member};
    END IF;
EXCEPTION WHEN unique_violation THEN NULL;
END $$"""


def _owned(owner: str) -> Iterator[str]:
    """Whatever the migrations made belongs to the owner, and only what they made."""
    ours = ", ".join(literal(table) for table in (*Base.metadata.tables, "alembic_version"))
    schemas = f"'{partitions.SCHEMA}', '{views.SCHEMA}'"
    yield f"""
DO $$ DECLARE thing record; BEGIN
    FOR thing IN SELECT nspname AS name FROM pg_namespace
        WHERE nspname IN ({schemas}) AND nspowner <> '{owner}'::regrole
    LOOP EXECUTE format('ALTER SCHEMA %I OWNER TO {owner}', thing.name); END LOOP;
    FOR thing IN
        SELECT c.oid::regclass AS name, CASE relkind WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END AS kind
        FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = relnamespace
        WHERE (nspname IN ({schemas}) OR nspname = 'public' AND relname IN ({ours}))
            AND relkind IN ('r', 'p', 'v') AND relowner <> '{owner}'::regrole
    LOOP EXECUTE format('ALTER %s %s OWNER TO {owner}', thing.kind, thing.name); END LOOP;
    FOR thing IN
        SELECT oid::regprocedure AS name FROM pg_proc WHERE pronamespace = 'public'::regnamespace
            AND proname IN ('{guards.FUNCTION}', 'ensure_partitions', 'make_partition')
            AND proowner <> '{owner}'::regrole
    LOOP EXECUTE format('ALTER FUNCTION %s OWNER TO {owner}', thing.name); END LOOP;
END $$"""


def _app(app: str) -> Iterator[str]:
    tables = Base.metadata.tables
    changing = ", ".join(c.name for c in tables["jobs"].columns if c.name not in FIXED)
    yield f"GRANT USAGE ON SCHEMA public, {views.SCHEMA} TO {app}"
    yield f"GRANT SELECT ON ALL TABLES IN SCHEMA {views.SCHEMA} TO {app}"
    yield f"GRANT EXECUTE ON FUNCTION public.ensure_partitions(integer) TO {app}"
    yield f"GRANT SELECT ON public.alembic_version TO {app}"
    for table in ("jobs", *guards.INSERT_ONLY):
        yield f"GRANT SELECT, INSERT ON public.{table} TO {app}"
        yield from _policy(table, app, "all_rows", "USING (true) WITH CHECK (true)")
    yield f"GRANT UPDATE ({changing}) ON public.jobs TO {app}"
    yield from _policy("tenants", app, "all_rows", "USING (true) WITH CHECK (true)")
    yield f"GRANT UPDATE ON public.chain_lock TO {app}"  # the right to lock it
    for table in sorted(tables.keys() - {"jobs", "auditors", "chain_lock", *guards.INSERT_ONLY}):
        yield f"GRANT SELECT, INSERT, UPDATE, DELETE ON public.{table} TO {app}"


def _auditors(auditor: str, auditor_all: str) -> Iterator[str]:
    """Select on the views, and on the rows behind them: see the module's docstring."""
    yield f"GRANT USAGE ON SCHEMA {views.SCHEMA} TO {auditor}"
    yield f"GRANT SELECT ON ALL TABLES IN SCHEMA {views.SCHEMA} TO {auditor}"
    yield f"GRANT SELECT ON public.auditors TO {auditor}"
    yield from _policy("auditors", auditor, "own_rows", "USING (role_name = current_user)")
    tenants = "(SELECT a.tenant FROM public.auditors AS a WHERE a.role_name = current_user)"
    yield from _policy("jobs", auditor, "own_tenants", f"FOR SELECT USING (tenant IN {tenants})")
    known = f"FOR SELECT USING (name = '' OR name IN {tenants})"
    yield from _policy("tenants", auditor, "own_tenants", known)
    for table in ("jobs", "tenants", *guards.INSERT_ONLY):
        yield f"GRANT SELECT ON public.{table} TO {auditor}"
        yield from _policy(table, auditor_all, "all_tenants", "FOR SELECT USING (true)")
        if "job_id" in Base.metadata.tables[table].columns:
            # Those of the jobs that the policy of jobs shows.
            seen = f"EXISTS (SELECT FROM public.jobs AS j WHERE j.id = {table}.job_id)"
            yield from _policy(table, auditor, "own_tenants", f"FOR SELECT USING ({seen})")
    yield from _policy("vocabulary", auditor, "all_texts", "FOR SELECT USING (true)")
    yield f"GRANT USAGE ON SCHEMA public TO {auditor_all}"
    yield f"GRANT SELECT ON public.alembic_version TO {auditor_all}"


def _policy(table: str, role: str, policy: str, rule: str) -> Iterator[str]:
    command, _, condition = rule.rpartition("USING")
    yield f"ALTER TABLE public.{table} ENABLE ROW LEVEL SECURITY"
    yield f"DROP POLICY IF EXISTS {policy} ON public.{table}"
    yield f"CREATE POLICY {policy} ON public.{table} {command}TO {role} USING{condition}"
