"""Keys of the HTTP API."""

from __future__ import annotations

from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Make the table."""
    op.execute(
        """
        CREATE TABLE api_keys (
            id text PRIMARY KEY,
            hash bytea NOT NULL,
            tenant text NOT NULL,
            name text DEFAULT '' NOT NULL,
            rights text[] NOT NULL,
            per_minute integer,
            created_at timestamptz DEFAULT now() NOT NULL,
            expires_at timestamptz,
            revoked_at timestamptz,
            due_at timestamptz DEFAULT now() NOT NULL
        )
        """
    )
