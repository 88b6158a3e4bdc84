"""Links carry the number of their format; those that are there are of the first."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add the column. No default stays: each new link states its own."""
    op.execute("ALTER TABLE chain ADD format smallint DEFAULT 1 NOT NULL")
    op.execute("ALTER TABLE chain ALTER format DROP DEFAULT")
