"""The kinds of job are a matter of the code: a new one needs no migration."""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Drop the constraint."""
    op.execute("ALTER TABLE jobs DROP CONSTRAINT ck_jobs_kind")
