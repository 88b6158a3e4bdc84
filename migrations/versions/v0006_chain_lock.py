"""What is locked to append to the chain: only the app and the owner may lock this table."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Create it."""
    op.create_table(
        "chain_lock",
        sa.Column("id", sa.Integer(), nullable=False, comment="Never written"),
        sa.PrimaryKeyConstraint("id", name="pk_chain_lock"),
        comment="Always empty. Whoever appends to the chain locks the table until its commit",
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("chain_lock")
