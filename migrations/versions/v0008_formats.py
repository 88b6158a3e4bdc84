"""Links carry the number of their format; those that are there are of the first."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add the column. No default stays: whoever appends a link says how it was made."""
    comment = "By whose rules the link and its proof are made and checked"
    column = sa.Column(
        "format", sa.SmallInteger(), nullable=False, server_default="1", comment=comment
    )
    op.add_column("chain", column)
    op.alter_column("chain", "format", server_default=None)


def downgrade() -> None:
    """Drop the column. Raises if links of a later format are there: they would not fit."""
    later = op.get_bind().execute(sa.text("SELECT count(*) FROM chain WHERE format > 1")).scalar()
    if later:
        raise RuntimeError(f"{later} links of the chain are of a later format")
    op.drop_column("chain", "format")
