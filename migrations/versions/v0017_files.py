"""Files of the HTTP API, and until when a batch made of one is answered."""

from __future__ import annotations

from alembic import op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    """Make the tables."""
    op.execute(
        """
        CREATE TABLE files (
            id uuid PRIMARY KEY,
            tenant text NOT NULL,
            name text NOT NULL,
            bytes bigint NOT NULL,
            created_at timestamptz DEFAULT now() NOT NULL,
            expires_at timestamptz
        );
        CREATE INDEX ix_files_tenant ON files (tenant, id);
        CREATE TABLE file_parts (
            file_id uuid NOT NULL REFERENCES files (id) ON DELETE CASCADE,
            number integer NOT NULL,
            data bytea NOT NULL,
            PRIMARY KEY (file_id, number)
        );
        ALTER TABLE batches ADD file_id uuid, ADD expires_at timestamptz,
            ADD cancelled_at timestamptz;
        """
    )
