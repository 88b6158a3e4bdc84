"""The trail: nodes, rollouts and answers, partitioned by the month in the job's id; vocabulary."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

T, INT, FLAG = sa.Text(), sa.Integer(), sa.Boolean()
DOUBLE: Any = sa.Double()
INTS, TEXTS = sa.ARRAY(INT), sa.ARRAY(T)
REALS: Any = sa.ARRAY(sa.REAL())
DOUBLES: Any = sa.ARRAY(DOUBLE)


def _column(name: str, kind: Any, comment: str, **options: Any) -> sa.Column[Any]:
    options.setdefault("nullable", False)
    return sa.Column(name, kind, comment=comment, **options)


def _table(name: str, comment: str, key: str, *parts: Any) -> None:
    """A table of records that attempts write, with the columns that all of them have."""
    op.create_table(
        name,
        _column("job_id", sa.Uuid(), "The job"),
        _column("generation", sa.BigInteger(), "Lease generation of the attempt that wrote it"),
        *parts,
        _column(
            "created_at",
            sa.DateTime(timezone=True),
            "When the row was written",
            server_default=sa.text("now()"),
        ),
        sa.PrimaryKeyConstraint("job_id", key, name=f"pk_{name}"),
        sa.ForeignKeyConstraint(
            ["job_id", "generation"],
            ["attempts.job_id", "attempts.generation"],
            name=f"fk_{name}_job_id_generation_attempts",
        ),
        comment=comment,
        postgresql_partition_by="RANGE (job_id)",
    )


def upgrade() -> None:
    """Create them, and the schema for partitions of all the trail."""
    op.execute("CREATE SCHEMA partitions")
    _nodes()
    _rollouts()
    _table(
        "answers",
        "The best distinct answers of each finished job, ranked. Insert only",
        "rank",
        _column("rank", INT, "1 is the best"),
        _column("key", T, "The form that votes are counted on"),
        _column("text", T, "The answer as a reader should see it"),
        _column("output", T, "Output part of its most confident rollout"),
        _column("thought", T, "Thought of the same rollout", nullable=True),
        _column("confidence", DOUBLE, "Mean value of its rollouts, 0 to 1"),
        _column("votes", INT, "Rollouts that reached it"),
        _column("share", DOUBLE, "Its part of the vote's total weight"),
        _column("rollout_ids", INTS, "The rollouts that reached it"),
    )
    op.create_table(
        "vocabulary",
        _column("model", T, "Name of the model"),
        _column("revision", T, "Revision of its weights"),
        _column("token_id", INT, "The token's number", autoincrement=False),
        _column("text", T, "What it reads by itself; U+FFFD in place of a part of a character"),
        sa.PrimaryKeyConstraint("model", "revision", "token_id", name="pk_vocabulary"),
        comment="Texts of candidates, for readers; no part of the proofs. Insert only",
    )


def _nodes() -> None:
    _table(
        "nodes",
        "Nodes of the search trees, with every generated token. Insert only",
        "node_id",
        _column("node_id", INT, "1, 2, ... in order of growth"),
        _column("parent_id", INT, "The node above; 0 is the root, the prompt"),
        _column("round", INT, "The round that added it, from 1"),
        _column("depth", INT, "Edges from the root"),
        _column("action", T, "step, mini_step, whole, reflection or answer"),
        _column("text", T, "What the action adds to the text of its parent"),
        _column("token_ids", INTS, "Its generated tokens; none for a reflection"),
        _column("token_texts", TEXTS, "Text that each token completes; joined they are the text"),
        _column("logprobs", REALS, "Natural log of each token's probability"),
        _column("confidences", DOUBLES, "c_i of each token: its probability over the best five's"),
        _column("top_ids", INTS, "Best candidates: five for each token in turn; -1: fewer"),
        _column("top_logprobs", REALS, "Their log-probs, in the same order"),
        _column("terminal", FLAG, "Whether the text ends here"),
        sa.CheckConstraint("0 <= parent_id AND parent_id < node_id", name=op.f("ck_nodes_parent")),
        sa.CheckConstraint(
            "cardinality(token_texts) = cardinality(token_ids)"
            " AND cardinality(logprobs) = cardinality(token_ids)"
            " AND cardinality(confidences) = cardinality(token_ids)"
            " AND cardinality(top_ids) = 5 * cardinality(token_ids)"
            " AND cardinality(top_logprobs) = 5 * cardinality(token_ids)",
            name=op.f("ck_nodes_tokens"),
        ),
    )
    op.create_index("ix_nodes_job_id_parent_id", "nodes", ["job_id", "parent_id"])


def _rollouts() -> None:
    _table(
        "rollouts",
        "Rollouts: visit counts and values follow from them. Insert only",
        "rollout_id",
        _column("rollout_id", INT, "0, 1, ... in order of asking"),
        _column("round", INT, "The round it belongs to, from 1"),
        _column("start_id", INT, "The node whose text was forked; 0: the prompt"),
        _column("path", INTS, "Nodes from the root to the leaf; to start_id if it failed"),
        _column("seed", INT, "Seed the branch was sampled with"),
        _column("reflect", T, "Where the reflection phrase went: no, first or at_end"),
        _column("finish", T, "stop (complete), length (cut off) or failed"),
        _column("confidence", DOUBLE, "Mean c_i of the tokens it generated"),
        _column("path_confidence", DOUBLE, "Mean c_i of all generated tokens on the path"),
        _column("value", DOUBLE, "What was backed up; 0 without an answer"),
        _column("answer", T, "Key of the answer it reached", nullable=True),
        _column("generated_tokens", INT, "Tokens it generated"),
        _column("prompt_tokens", INT, "Tokens of the text it was forked from"),
        _column("cached_tokens", INT, "Of those, served from the prefix cache"),
        _column("seconds", DOUBLE, "Seconds it took to generate"),
        _column("error", T, "Why it failed", nullable=True),
    )


def downgrade() -> None:
    """Drop all of them, with every tree in them."""
    for table in ("vocabulary", "answers", "rollouts", "nodes"):
        op.drop_table(table)
    # Those of audit_log, which is dropped later.
    op.execute("DROP SCHEMA partitions CASCADE")
