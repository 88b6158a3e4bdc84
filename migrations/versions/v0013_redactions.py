"""Jobs have a salt for the hashes of their texts, and may be redacted."""

from __future__ import annotations

from alembic import op

revision = "0013"
down_revision = "0011"


def upgrade() -> None:
    """Add the columns (each job gets a salt of its own) and the table."""
    op.execute(
        "ALTER TABLE jobs ADD salt uuid DEFAULT gen_random_uuid(), ADD redacted_at timestamptz"
    )
    op.execute("""
        CREATE TABLE redactions (
            job_id uuid PRIMARY KEY REFERENCES jobs (id),
            by text NOT NULL DEFAULT session_user,
            at timestamptz NOT NULL DEFAULT now(),
            commitments bytea NOT NULL,
            transaction bigint NOT NULL DEFAULT (pg_current_xact_id()::text)::bigint
        )
    """)
    op.execute("""
        CREATE TRIGGER insert_only BEFORE UPDATE OR DELETE OR TRUNCATE ON redactions
            FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()
    """)
    op.execute("""
        ALTER TABLE chain DROP CONSTRAINT ck_chain_kind, DROP CONSTRAINT ck_chain_job,
            ADD CONSTRAINT ck_chain_kind CHECK (kind IN ('first', 'job', 'redaction', 'archive')),
            ADD CONSTRAINT ck_chain_job
                CHECK ((kind IN ('job', 'redaction')) = (job_id IS NOT NULL))
    """)
