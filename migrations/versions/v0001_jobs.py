"""Jobs, the attempts to run them, and the log of what happened to them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None

T, INT, BIG, JSON = sa.Text(), sa.Integer(), sa.BigInteger(), JSONB()
DOUBLE: Any = sa.Double()
TIME = sa.DateTime(timezone=True)
NOW, ZERO = sa.text("now()"), sa.text("0")


def _column(name: str, kind: Any, comment: str, *extra: Any, **options: Any) -> sa.Column[Any]:
    options.setdefault("nullable", False)
    return sa.Column(name, kind, *extra, comment=comment, **options)


def _null(name: str, kind: Any, comment: str) -> sa.Column[Any]:
    return _column(name, kind, comment, nullable=True)


def _count(name: str, kind: Any, comment: str) -> sa.Column[Any]:
    return _column(name, kind, comment, server_default=ZERO)


def upgrade() -> None:
    """Create jobs, tenants, attempts and audit_log."""
    _jobs()
    op.create_table(
        "tenants",
        _column("name", T, "The tenant; empty: all of them"),
        _null("paused_at", TIME, "When its jobs were paused; null: they are not"),
        _null("max_queued", INT, "Most queued jobs; null: as the settings have it"),
        sa.PrimaryKeyConstraint("name", name="pk_tenants"),
        comment="What is particular to a tenant; most need no row",
    )
    op.create_table(
        "attempts",
        _column("job_id", sa.Uuid(), "The job"),
        _column("generation", BIG, "Lease generation of the claim"),
        _column("worker", T, "Name of the worker process"),
        _column("host", T, "Machine it runs on"),
        _column("pid", INT, "Its process id there"),
        _null("runtime", T, "Name of the engine; null here and below: it could not be used"),
        _null("runtime_version", T, "Version of the engine"),
        _null("model", T, "Name of the model"),
        _null("revision", T, "Revision of its weights"),
        _null("config", JSON, "Every setting of the search"),
        _null("prompt", T, "The prompt, as the model was given it"),
        _null("seed", INT, "Seed that all randomness flows from"),
        _column("started_at", TIME, "When claimed", server_default=NOW),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_attempts_job_id_jobs"),
        sa.PrimaryKeyConstraint("job_id", "generation", name="pk_attempts"),
        comment="Claims of jobs by workers, with all it takes to replay them. Insert only",
    )
    op.create_table(
        "audit_log",
        _column("id", BIG, "In order of writing", sa.Identity(always=True)),
        _column("job_id", sa.Uuid(), "The job"),
        _null("generation", BIG, "Lease generation of the worker that did it; null: not a worker"),
        _column("event", T, "submitted, published, claimed, round, retried, ... or a final state"),
        _column("detail", JSON, "What there is to say about it", server_default="{}"),
        _column("at", TIME, "When the transaction that wrote it began", server_default=NOW),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_audit_log_job_id_jobs"),
        sa.PrimaryKeyConstraint("job_id", "id", name="pk_audit_log"),
        comment="What happened to each job, in order. Insert only",
        postgresql_partition_by="RANGE (job_id)",
    )


def _jobs() -> None:
    op.create_table(
        "jobs",
        _column("id", sa.Uuid(), "UUID version 7: ids sort by time of submission"),
        _column("tenant", T, "Who the job belongs to"),
        _column("kind", T, "reasoning, translation or open_ended"),
        _column(
            "state",
            T,
            "queued, running, succeeded, failed, cancelled, expired or dead (given up)",
            server_default="queued",
        ),
        _column("priority", sa.SmallInteger(), "0 is high, 3 normal, 6 low"),
        _column(
            "turn_at",
            TIME,
            "Place in its tenant's line: when submitted, and later the lower its priority",
            server_default=NOW,
        ),
        _column("payload", JSON, "The request as submitted, without the expected answer"),
        _null("expected", T, "The answer the caller expects; no search ever sees it"),
        _column("payload_hash", T, "SHA-256 of the canonical request, hex"),
        _null("idempotency_key", T, "The caller's name for the request, unique per tenant"),
        _null("batch_id", sa.Uuid(), "The batch it was submitted in"),
        _column("created_at", TIME, "When submitted", server_default=NOW),
        _column(
            "run_after",
            TIME,
            "Not claimed before this time (back-off after an error)",
            server_default=NOW,
        ),
        _null("expires_at", TIME, "Deadline: not searched any more from this time on"),
        _null("paused_at", TIME, "When it was paused; null: it is not"),
        _null(
            "published_at",
            TIME,
            "When its message was last given to the broker; null: it must be, once it is due",
        ),
        _null("started_at", TIME, "First claim"),
        _null("finished_at", TIME, "When it reached a final state"),
        _null("cancel_requested_at", TIME, "When it was asked to stop while running"),
        _count("attempts", INT, "Claims so far"),
        _count("failures", INT, "Of those, ended by an error that may pass"),
        _count("losses", INT, "Of those, ended by the loss of the worker"),
        _null("lease_owner", T, "Worker that holds it; null: none"),
        _count(
            "lease_generation",
            BIG,
            "Fencing token: grows with every claim; writes of older ones are refused",
        ),
        _null("lease_expires_at", TIME, "After this another worker may claim it"),
        _null(
            "plan", JSON, "Configuration, prompt, model and revision; fixed when it was first begun"
        ),
        _count("rounds", INT, "Rounds in the trail"),
        _count("rollouts", INT, "Rollouts in the trail"),
        _count("nodes", INT, "Nodes in the trail"),
        _count("generated_tokens", BIG, "Tokens generated by the rounds in the trail"),
        _count("prompt_tokens", BIG, "Tokens of all prefixes that were forked"),
        _count("cached_tokens", BIG, "Of those, served from the prefix cache"),
        _count("seconds", DOUBLE, "Seconds of searching, over all attempts"),
        _null("answer", T, "The best answer"),
        _null("confidence", DOUBLE, "Its mean confidence, 0 to 1"),
        _null("correct", sa.Boolean(), "Whether it is the expected one"),
        _null("stop_reason", T, "Why the search ended"),
        _null("last_error", JSON, "type, message and traceback of the last error"),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled', 'expired', 'dead')",
            name=op.f("ck_jobs_state"),
        ),
        sa.CheckConstraint(
            "kind IN ('reasoning', 'translation', 'open_ended')", name=op.f("ck_jobs_kind")
        ),
        sa.CheckConstraint(
            "(state = 'running') = (lease_owner IS NOT NULL AND lease_expires_at IS NOT NULL)",
            name=op.f("ck_jobs_lease"),
        ),
        sa.CheckConstraint(
            "(state IN ('queued', 'running')) = (finished_at IS NULL)",
            name=op.f("ck_jobs_finished"),
        ),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sa.UniqueConstraint("tenant", "idempotency_key", name="uq_jobs_tenant_idempotency_key"),
        comment="Jobs: the truth about each, and the outbox its message is published from",
    )
    for name, columns, condition in (
        ("ix_jobs_to_publish", ["run_after"], "state = 'queued' AND published_at IS NULL"),
        ("ix_jobs_waiting", ["published_at"], "state = 'queued' AND published_at IS NOT NULL"),
        (
            "ix_jobs_line",
            ["tenant", "turn_at"],
            "state = 'queued' AND paused_at IS NULL AND published_at IS NOT NULL",
        ),
        ("ix_jobs_running", ["tenant"], "state = 'running'"),
        ("ix_jobs_expires_at", ["expires_at"], "finished_at IS NULL AND expires_at IS NOT NULL"),
        ("ix_jobs_given_up", ["finished_at"], "state IN ('failed', 'dead')"),
        ("ix_jobs_tenant_created_at", ["tenant", "created_at"], None),
        ("ix_jobs_batch_id", ["batch_id"], "batch_id IS NOT NULL"),
    ):
        where = None if condition is None else sa.text(condition)
        op.create_index(name, "jobs", columns, postgresql_where=where)


def downgrade() -> None:
    """Drop all of them, with every job in them."""
    for table in ("audit_log", "attempts", "tenants", "jobs"):
        op.drop_table(table)
