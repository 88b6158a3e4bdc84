"""Triggers that keep the trail insert only. Its partitions get their own: store/partitions.py."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"

TABLES = ("attempts", "nodes", "rollouts", "answers", "audit_log", "vocabulary")

REFUSE_CHANGE = """
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% of % refused: the audit trail is insert only', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation';
END
$$
"""


def upgrade() -> None:
    """Create the function and its triggers."""
    op.execute(REFUSE_CHANGE)
    for table in TABLES:
        op.execute(
            f"CREATE TRIGGER insert_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        )


def downgrade() -> None:
    """Drop them, and those of the partitions."""
    op.execute("DROP FUNCTION refuse_change() CASCADE")  # with the triggers that call it
