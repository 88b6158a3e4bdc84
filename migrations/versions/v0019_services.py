"""Redaction, batches, the HTTP API's keys, files and webhooks, and data sets for training."""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0019"
down_revision = "0011"


def upgrade() -> None:
    """Make the tables; jobs that were submitted together are a batch."""
    op.execute(Path(__file__).with_suffix(".sql").read_text())
