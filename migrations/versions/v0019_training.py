"""Attempts say what their model was fine-tuned from and on."""

from __future__ import annotations

from alembic import op

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    """Add the column."""
    op.execute("ALTER TABLE attempts ADD training jsonb")
