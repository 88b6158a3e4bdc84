"""Webhooks with their deliveries, and when a batch ended."""

from __future__ import annotations

from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    """Make the tables; batches whose jobs have all ended are marked, without a delivery."""
    op.execute(
        """
        CREATE TABLE webhooks (
            id uuid DEFAULT gen_random_uuid() PRIMARY KEY,
            tenant text NOT NULL,
            url text NOT NULL,
            events text[] NOT NULL,
            secret text NOT NULL,
            old_secret text,
            old_until timestamptz,
            created_at timestamptz DEFAULT now() NOT NULL
        );
        CREATE TABLE webhook_deliveries (
            id uuid DEFAULT gen_random_uuid() PRIMARY KEY,
            webhook_id uuid NOT NULL REFERENCES webhooks (id) ON DELETE CASCADE,
            event text NOT NULL,
            job_id uuid,
            batch_id uuid,
            created_at timestamptz DEFAULT now() NOT NULL,
            state text DEFAULT 'pending' NOT NULL
                CHECK (state IN ('pending', 'delivered', 'failed')),
            attempts integer DEFAULT 0 NOT NULL,
            next_at timestamptz DEFAULT now() NOT NULL,
            tried_at timestamptz,
            error text
        );
        CREATE INDEX ix_webhook_deliveries_pending ON webhook_deliveries (webhook_id, next_at)
            WHERE state = 'pending';
        CREATE INDEX ix_webhook_deliveries_created_at ON webhook_deliveries
            (webhook_id, created_at);
        ALTER TABLE batches ADD finished_at timestamptz;
        CREATE INDEX ix_batches_unfinished ON batches (id) WHERE finished_at IS NULL;
        CREATE INDEX ix_jobs_unfinished ON jobs (batch_id)
            WHERE finished_at IS NULL AND batch_id IS NOT NULL;
        UPDATE batches SET finished_at = greatest(completed_at,
                (SELECT max(finished_at) FROM jobs WHERE batch_id = batches.id))
            WHERE completed_at IS NOT NULL AND NOT EXISTS (
                SELECT FROM jobs WHERE batch_id = batches.id AND finished_at IS NULL);
        """
    )
