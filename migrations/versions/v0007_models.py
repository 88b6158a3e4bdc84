"""Which model a job was begun on, as a part of the queue's order; ties are broken by id."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the columns and replace the queue's index."""
    op.execute(
        """
        ALTER TABLE jobs ADD begun_on text DEFAULT '' NOT NULL, ADD parked_at timestamptz;
        -- Those that may be claimed once more.
        UPDATE jobs SET begun_on = (plan ->> 'model') || ' ' || (plan ->> 'revision')
            WHERE plan IS NOT NULL AND state IN ('queued', 'running', 'failed', 'dead');
        DROP INDEX ix_jobs_line;
        CREATE INDEX ix_jobs_line ON jobs (tenant, begun_on, turn_at, id)
            WHERE state = 'queued' AND paused_at IS NULL AND published_at IS NOT NULL;
        CREATE INDEX ix_jobs_begun ON jobs (begun_on)
            WHERE state = 'queued' AND begun_on <> '' AND parked_at IS NULL;
        CREATE INDEX ix_jobs_parked ON jobs (begun_on)
            WHERE state = 'queued' AND parked_at IS NOT NULL;
        CREATE INDEX ix_jobs_to_cancel ON jobs (cancel_requested_at)
            WHERE state = 'queued' AND cancel_requested_at IS NOT NULL;
        """
    )
