"""The table that is locked to append to the chain: only the app and the owner may lock it."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Create it."""
    op.execute("CREATE TABLE chain_lock (id integer CONSTRAINT pk_chain_lock PRIMARY KEY)")
