"""Rollouts keep what a reward model or a verifier said."""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Add the column."""
    op.execute("ALTER TABLE rollouts ADD scores double precision[]")
