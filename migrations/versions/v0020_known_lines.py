"""An index of the batch lines whose idempotency key named a job."""

from __future__ import annotations

from alembic import op

revision = "0020"
down_revision = "0019"


def upgrade() -> None:
    """Make it: a job that is requeued or redacted is looked for among them."""
    op.execute(
        "CREATE INDEX ix_batch_lines_known_id ON batch_lines (known_id) WHERE known_id IS NOT NULL"
    )
