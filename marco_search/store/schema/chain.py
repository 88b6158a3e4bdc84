"""Tamper evidence: the chain, the proof of each link, and what was archived."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    Integer,
    SmallInteger,
    Uuid,
)
from sqlalchemy.orm import Mapped, mapped_column

from marco_search.store.schema.base import Base, one_of


class ChainModel(Base):
    """One link of the chain (`marco_search.audit.chain`)."""

    __tablename__ = "chain"

    seq: Mapped[int] = mapped_column(
        BigInteger, primary_key=True, autoincrement=False, comment="0, 1, ... without a gap"
    )
    kind: Mapped[str] = mapped_column(comment="first, job (one that ended) or archive")
    job_id: Mapped[UUID | None] = mapped_column(
        Uuid, ForeignKey("jobs.id"), comment="The job that ended"
    )
    root: Mapped[bytes] = mapped_column(
        comment="Merkle root over all rows of the job; of an archive, the hash of its list"
    )
    previous: Mapped[bytes] = mapped_column(comment="Head of the link before")
    head: Mapped[bytes] = mapped_column(comment="SHA-256 over all other columns")
    at: Mapped[datetime] = mapped_column(comment="When it was chained")
    format: Mapped[int] = mapped_column(
        SmallInteger, comment="By whose rules the link and its proof are made and checked"
    )

    __table_args__ = (
        CheckConstraint(one_of("kind", ["first", "job", "archive"]), name="kind"),
        CheckConstraint("(kind = 'job') = (job_id IS NOT NULL)", name="job"),
        Index(None, "job_id"),
        {"comment": "Chain of hashes: a link for each end of a job. Insert only"},
    )


class ChainLockModel(Base):
    """What is locked to append to the chain (`marco_search.store.seal.seals`)."""

    __tablename__ = "chain_lock"

    id: Mapped[int] = mapped_column(primary_key=True, comment="Never written")

    __table_args__ = (
        {"comment": "Always empty. Whoever appends to the chain locks the table until its commit"},
    )


def _keys(comment: str, kind: type[Integer] | type[BigInteger]) -> Mapped[list[int]]:
    return mapped_column(ARRAY(kind), comment=comment)


class ProofModel(Base):
    """The hashes of a job's rows when it ended."""

    __tablename__ = "proofs"

    seq: Mapped[int] = mapped_column(
        BigInteger, ForeignKey("chain.seq"), primary_key=True, autoincrement=False,
        comment="The link whose root they make up",
    )  # fmt: skip
    attempts: Mapped[list[int]] = _keys("Generations of the attempts covered", BigInteger)
    events: Mapped[list[int]] = _keys("Ids of the rows of audit_log covered", BigInteger)
    nodes: Mapped[list[int]] = _keys("Ids of the nodes covered", Integer)
    rollouts: Mapped[list[int]] = _keys("Ids of the rollouts covered", Integer)
    answers: Mapped[list[int]] = _keys("Ranks of the answers covered", Integer)
    hashes: Mapped[bytes] = mapped_column(
        comment="SHA-256 of request, outcome and every row covered, in this order, joined"
    )

    __table_args__ = (
        {"comment": "Hash of each row of a job when it ended: names the row changed. Insert only"},
    )


class ArchiveModel(Base):
    """A month whose trees were written to files and taken out of the database."""

    __tablename__ = "archives"

    seq: Mapped[int] = mapped_column(
        BigInteger, ForeignKey("chain.seq"), primary_key=True, autoincrement=False,
        comment="The link whose root is the SHA-256 of the list",
    )  # fmt: skip
    first: Mapped[UUID] = mapped_column(Uuid, comment="Lowest id a job of the month can have")
    before: Mapped[UUID] = mapped_column(Uuid, comment="Lowest id of the next month")
    files: Mapped[str] = mapped_column(comment="The list: manifest.json, word for word")

    __table_args__ = (
        {"comment": "Months whose trees are in an archive, with what it holds. Insert only"},
    )
