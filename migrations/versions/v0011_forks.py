"""Rollouts say with which candidate they were made to begin."""

from __future__ import annotations

from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Add the column."""
    op.execute("ALTER TABLE rollouts ADD forced integer")
