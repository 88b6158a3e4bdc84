"""Tamper evidence: the chain, the proofs, and what was archived."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from alembic import op

from marco_search.audit.chain import FIRST, NO_HEAD, head_of

revision = "0005"
down_revision = "0004"

T, INT, BIG, BYTES = sa.Text(), sa.Integer(), sa.BigInteger(), sa.LargeBinary()
TABLES = ("chain", "proofs", "archives")


def _column(name: str, kind: Any, comment: str, *extra: Any, **options: Any) -> sa.Column[Any]:
    options.setdefault("nullable", False)
    return sa.Column(name, kind, *extra, comment=comment, **options)


def upgrade() -> None:
    """Create them, with the chain's first link: its random root gives the database an id."""
    op.create_table(
        "chain",
        _column("seq", BIG, "0, 1, ... without a gap", autoincrement=False),
        _column("kind", T, "first, job (one that ended) or archive"),
        _column("job_id", sa.Uuid(), "The job that ended", nullable=True),
        _column(
            "root",
            BYTES,
            "Merkle root over all rows of the job; of an archive, the hash of its list",
        ),
        _column("previous", BYTES, "Head of the link before"),
        _column("head", BYTES, "SHA-256 over all other columns"),
        _column("at", sa.DateTime(timezone=True), "When it was chained"),
        sa.CheckConstraint("kind IN ('first', 'job', 'archive')", name=op.f("ck_chain_kind")),
        sa.CheckConstraint("(kind = 'job') = (job_id IS NOT NULL)", name=op.f("ck_chain_job")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_chain_job_id_jobs"),
        sa.PrimaryKeyConstraint("seq", name="pk_chain"),
        comment="Chain of hashes: a link for each end of a job. Insert only",
    )
    op.create_index("ix_chain_job_id", "chain", ["job_id"])
    op.create_table(
        "proofs",
        _column("seq", BIG, "The link whose root they make up", autoincrement=False),
        _column("attempts", sa.ARRAY(BIG), "Generations of the attempts covered"),
        _column("events", sa.ARRAY(BIG), "Ids of the rows of audit_log covered"),
        _column("nodes", sa.ARRAY(INT), "Ids of the nodes covered"),
        _column("rollouts", sa.ARRAY(INT), "Ids of the rollouts covered"),
        _column("answers", sa.ARRAY(INT), "Ranks of the answers covered"),
        _column(
            "hashes",
            BYTES,
            "SHA-256 of request, outcome and every row covered, in this order, joined",
        ),
        sa.ForeignKeyConstraint(["seq"], ["chain.seq"], name="fk_proofs_seq_chain"),
        sa.PrimaryKeyConstraint("seq", name="pk_proofs"),
        comment="Hash of each row of a job when it ended: names the row changed. Insert only",
    )
    op.create_table(
        "archives",
        _column("seq", BIG, "The link whose root is the SHA-256 of the list", autoincrement=False),
        _column("first", sa.Uuid(), "Lowest id a job of the month can have"),
        _column("before", sa.Uuid(), "Lowest id of the next month"),
        _column("files", T, "The list: manifest.json, word for word"),
        sa.ForeignKeyConstraint(["seq"], ["chain.seq"], name="fk_archives_seq_chain"),
        sa.PrimaryKeyConstraint("seq", name="pk_archives"),
        comment="Months whose trees are in an archive, with what it holds. Insert only",
    )
    _first_link()
    for table in TABLES:
        op.execute(
            f"CREATE TRIGGER insert_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        )


def _first_link() -> None:
    root, at = secrets.token_bytes(32), datetime.now(UTC)
    head = head_of(seq=0, kind=FIRST, job_id=None, root=root, previous=NO_HEAD, at=at, format=1)
    op.get_bind().execute(
        sa.text(
            "INSERT INTO chain (seq, kind, root, previous, head, at)"
            " VALUES (0, :kind, :root, :previous, :head, :at)"
        ),
        {"kind": FIRST, "root": root, "previous": NO_HEAD, "head": head, "at": at},
    )


def downgrade() -> None:
    """Drop them: nothing vouches for the trail any more."""
    for table in reversed(TABLES):
        op.drop_table(table)
