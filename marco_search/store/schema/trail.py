"""The insert-only trail: nodes, rollouts, answers, and the log of what happened."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import (
    ARRAY,
    REAL,
    BigInteger,
    CheckConstraint,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    Text,
)
from sqlalchemy.orm import Mapped, mapped_column

from marco_search.store.schema.base import (
    NOW,
    Base,
    JobId,
    JsonObject,
    by_month,
    created_at,
    generation,
    of_attempt,
)


class NodeModel(Base):
    """A node of a search tree below the root. The root is the prompt and has no row."""

    __tablename__ = "nodes"

    job_id: Mapped[JobId] = mapped_column(comment="The job")
    node_id: Mapped[int] = mapped_column(primary_key=True, comment="1, 2, ... in order of growth")
    parent_id: Mapped[int] = mapped_column(comment="The node above; 0 is the root, the prompt")
    generation: Mapped[int] = generation()
    round: Mapped[int] = mapped_column(comment="The round that added it, from 1")
    depth: Mapped[int] = mapped_column(comment="Edges from the root")
    action: Mapped[str] = mapped_column(comment="step, mini_step, whole, reflection or answer")
    text: Mapped[str] = mapped_column(comment="What the action adds to the text of its parent")
    token_ids: Mapped[list[int]] = mapped_column(
        ARRAY(Integer), comment="Its generated tokens; none for a reflection"
    )
    token_texts: Mapped[list[str]] = mapped_column(
        ARRAY(Text), comment="Text that each token completes; joined they are the text"
    )
    logprobs: Mapped[list[float]] = mapped_column(
        ARRAY(REAL), comment="Natural log of each token's probability"
    )
    confidences: Mapped[list[float]] = mapped_column(
        ARRAY(Double), comment="c_i of each token: its probability over the best five's"
    )
    top_ids: Mapped[list[int]] = mapped_column(
        ARRAY(Integer),
        comment="Best candidates: five for each token in turn; -1: fewer",
    )
    top_logprobs: Mapped[list[float]] = mapped_column(
        ARRAY(REAL), comment="Their log-probs, in the same order"
    )
    terminal: Mapped[bool] = mapped_column(comment="Whether the text ends here")
    created_at: Mapped[datetime] = created_at()

    __table_args__ = (
        of_attempt(),
        Index(None, "job_id", "parent_id"),
        CheckConstraint("0 <= parent_id AND parent_id < node_id", name="parent"),
        CheckConstraint(
            "cardinality(token_texts) = cardinality(token_ids)"
            " AND cardinality(logprobs) = cardinality(token_ids)"
            " AND cardinality(confidences) = cardinality(token_ids)"
            " AND cardinality(top_ids) = 5 * cardinality(token_ids)"
            " AND cardinality(top_logprobs) = 5 * cardinality(token_ids)",
            name="tokens",
        ),
        by_month("Nodes of the search trees, with every generated token. Insert only"),
    )


class RolloutModel(Base):
    """One branch, from the node it was forked from to where it ended."""

    __tablename__ = "rollouts"

    job_id: Mapped[JobId] = mapped_column(comment="The job")
    rollout_id: Mapped[int] = mapped_column(
        primary_key=True, comment="0, 1, ... in order of asking"
    )
    generation: Mapped[int] = generation()
    round: Mapped[int] = mapped_column(comment="The round it belongs to, from 1")
    start_id: Mapped[int] = mapped_column(comment="The node whose text was forked; 0: the prompt")
    path: Mapped[list[int]] = mapped_column(
        ARRAY(Integer), comment="Nodes from the root to the leaf; to start_id if it failed"
    )
    seed: Mapped[int] = mapped_column(comment="Seed the branch was sampled with")
    reflect: Mapped[str] = mapped_column(
        comment="Where the reflection phrase went: no, first or at_end"
    )
    finish: Mapped[str] = mapped_column(comment="stop (complete), length (cut off) or failed")
    confidence: Mapped[float] = mapped_column(comment="Mean c_i of the tokens it generated")
    path_confidence: Mapped[float] = mapped_column(
        comment="Mean c_i of all generated tokens on the path"
    )
    value: Mapped[float] = mapped_column(comment="What was backed up; 0 without an answer")
    answer: Mapped[str | None] = mapped_column(comment="Key of the answer it reached")
    generated_tokens: Mapped[int] = mapped_column(comment="Tokens it generated")
    prompt_tokens: Mapped[int] = mapped_column(comment="Tokens of the text it was forked from")
    cached_tokens: Mapped[int] = mapped_column(comment="Of those, served from the prefix cache")
    seconds: Mapped[float] = mapped_column(comment="Seconds it took to generate")
    error: Mapped[str | None] = mapped_column(comment="Why it failed")
    created_at: Mapped[datetime] = created_at()

    __table_args__ = (
        of_attempt(),
        by_month("Rollouts: visit counts and values follow from them. Insert only"),
    )


class AnswerModel(Base):
    """One of the best distinct answers of a finished job."""

    __tablename__ = "answers"

    job_id: Mapped[JobId] = mapped_column(comment="The job")
    rank: Mapped[int] = mapped_column(primary_key=True, comment="1 is the best")
    generation: Mapped[int] = generation()
    key: Mapped[str] = mapped_column(comment="The form that votes are counted on")
    text: Mapped[str] = mapped_column(comment="The answer as a reader should see it")
    output: Mapped[str] = mapped_column(comment="Output part of its most confident rollout")
    thought: Mapped[str | None] = mapped_column(comment="Thought of the same rollout")
    confidence: Mapped[float] = mapped_column(comment="Mean value of its rollouts, 0 to 1")
    votes: Mapped[int] = mapped_column(comment="Rollouts that reached it")
    share: Mapped[float] = mapped_column(comment="Its part of the vote's total weight")
    rollout_ids: Mapped[list[int]] = mapped_column(
        ARRAY(Integer), comment="The rollouts that reached it"
    )
    created_at: Mapped[datetime] = created_at()

    __table_args__ = (
        of_attempt(),
        by_month("The best distinct answers of each finished job, ranked. Insert only"),
    )


class VocabularyModel(Base):
    """What a token reads, as the runtime of a model spells it."""

    __tablename__ = "vocabulary"

    model: Mapped[str] = mapped_column(primary_key=True, comment="Name of the model")
    revision: Mapped[str] = mapped_column(primary_key=True, comment="Revision of its weights")
    token_id: Mapped[int] = mapped_column(
        primary_key=True, autoincrement=False, comment="The token's number"
    )
    text: Mapped[str] = mapped_column(
        comment="What it reads by itself; U+FFFD in place of a part of a character"
    )

    # Belongs to no tenant: every auditor may read it. All that it tells is that some search of
    # the model came across a token as a candidate, not whose and not with what before it.
    __table_args__ = (
        {"comment": "Texts of candidates, for readers; no part of the proofs. Insert only"},
    )


class AuditModel(Base):
    """One thing that happened to a job."""

    __tablename__ = "audit_log"

    job_id: Mapped[JobId] = mapped_column(ForeignKey("jobs.id"), comment="The job")
    id: Mapped[int] = mapped_column(
        BigInteger, Identity(always=True), primary_key=True, comment="In order of writing"
    )
    generation: Mapped[int | None] = mapped_column(
        BigInteger, comment="Lease generation of the worker that did it; null: not a worker"
    )
    event: Mapped[str] = mapped_column(
        comment="submitted, published, claimed, round, retried, ... or a final state"
    )
    detail: Mapped[JsonObject] = mapped_column(
        server_default="{}", comment="What there is to say about it"
    )
    at: Mapped[datetime] = mapped_column(
        server_default=NOW, comment="When the transaction that wrote it began"
    )

    __table_args__ = (by_month("What happened to each job, in order. Insert only"),)
