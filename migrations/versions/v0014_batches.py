"""Batches, their refused lines, and each job's line and name in its batch."""

from __future__ import annotations

from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Make the tables; batches that are there were complete, in the order of their jobs."""
    op.execute(
        """
        CREATE TABLE batches (
            id uuid PRIMARY KEY,
            tenant text NOT NULL,
            source text,
            metadata jsonb DEFAULT '{}' NOT NULL,
            created_at timestamptz DEFAULT now() NOT NULL,
            completed_at timestamptz,
            lines integer DEFAULT 0 NOT NULL,
            refused integer DEFAULT 0 NOT NULL,
            digest text
        );
        CREATE TABLE batch_lines (
            batch_id uuid NOT NULL REFERENCES batches (id),
            line integer NOT NULL,
            custom_id text,
            known_id uuid,
            field text,
            reason text,
            PRIMARY KEY (batch_id, line)
        );
        CREATE INDEX ix_batches_source ON batches (tenant, source) WHERE completed_at IS NULL;
        ALTER TABLE jobs ADD batch_line integer, ADD custom_id text;
        UPDATE jobs SET batch_line = numbered.line FROM (
            SELECT id, row_number() OVER (PARTITION BY batch_id ORDER BY id) AS line
            FROM jobs WHERE batch_id IS NOT NULL
        ) AS numbered WHERE numbered.id = jobs.id;
        INSERT INTO batches (id, tenant, created_at, completed_at, lines)
            SELECT batch_id, min(tenant), min(created_at), max(created_at), count(*)
            FROM jobs WHERE batch_id IS NOT NULL GROUP BY batch_id;
        DROP INDEX ix_jobs_batch_id;
        CREATE INDEX ix_jobs_batch_id ON jobs (batch_id, batch_line, id)
            WHERE batch_id IS NOT NULL;
        """
    )
