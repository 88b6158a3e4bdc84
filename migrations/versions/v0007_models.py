"""Which model a job was begun on, as a part of the line; ties in the line broken by id."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

_IN_LINE = "state = 'queued' AND paused_at IS NULL AND published_at IS NOT NULL"
_INDEXES = (
    ("ix_jobs_begun", "begun_on", "state = 'queued' AND begun_on <> '' AND parked_at IS NULL"),
    ("ix_jobs_parked", "begun_on", "state = 'queued' AND parked_at IS NOT NULL"),
    (
        "ix_jobs_to_cancel",
        "cancel_requested_at",
        "state = 'queued' AND cancel_requested_at IS NOT NULL",
    ),
)


def upgrade() -> None:
    """Add the columns and remake the line's index."""
    op.add_column(
        "jobs",
        sa.Column(
            "begun_on",
            sa.Text(),
            server_default="",
            nullable=False,
            comment="Model and revision of its plan: a part of the line; empty: not begun",
        ),
    )
    op.add_column(
        "jobs",
        sa.Column(
            "parked_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="Since when it waits for a worker with its model: one with another model "
            "found it",
        ),
    )
    # Those that may be claimed once more.
    op.execute(
        "UPDATE jobs SET begun_on = (plan ->> 'model') || ' ' || (plan ->> 'revision')"
        " WHERE plan IS NOT NULL AND state IN ('queued', 'running', 'failed', 'dead')"
    )
    op.drop_index("ix_jobs_line", "jobs")
    _line(["tenant", "begun_on", "turn_at", "id"])
    for name, column, condition in _INDEXES:
        op.create_index(name, "jobs", [column], postgresql_where=sa.text(condition))


def downgrade() -> None:
    """The line as it was."""
    for name, _, _ in _INDEXES:
        op.drop_index(name, "jobs")
    op.drop_index("ix_jobs_line", "jobs")
    op.drop_column("jobs", "parked_at")
    op.drop_column("jobs", "begun_on")
    _line(["tenant", "turn_at"])


def _line(columns: list[str]) -> None:
    op.create_index("ix_jobs_line", "jobs", columns, postgresql_where=sa.text(_IN_LINE))
