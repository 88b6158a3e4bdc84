"""Formats of the audit trail, queues by model, scores from outside and forks."""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0011"
down_revision = "0005"


def upgrade() -> None:
    """Add them; jobs that were begun know on which model."""
    op.execute(Path(__file__).with_suffix(".sql").read_text())
