"""Triggers that refuse every change to the trail, whoever asks and however few rows it hits.

Created by the migrations, which hold their own frozen copy; `migrations.check` compares.
"""

from __future__ import annotations

INSERT_ONLY = (
    "attempts",
    "nodes",
    "rollouts",
    "answers",
    "audit_log",
    "vocabulary",
    "chain",
    "proofs",
    "archives",
)
"""Tables whose rows are never changed or deleted."""

FUNCTION = "refuse_change"
TRIGGER = "insert_only"

FUNCTION_BODY = """
BEGIN
    RAISE EXCEPTION '% of % refused: the audit trail is insert only', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation';
END
"""
