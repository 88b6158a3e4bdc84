"""The table of auditors. Roles and their rights follow from the tables: store/roles.py."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Create it."""
    op.create_table(
        "auditors",
        sa.Column(
            "role_name", sa.Text(), nullable=False, comment="The role that the auditor logs in as"
        ),
        sa.Column(
            "tenant",
            sa.Text(),
            nullable=False,
            comment="A tenant whose jobs it sees; it sees no others",
        ),
        sa.PrimaryKeyConstraint("role_name", "tenant", name="pk_auditors"),
        comment="Which auditor sees which tenant's jobs through the views",
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("auditors")
