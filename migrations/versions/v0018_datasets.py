"""Data sets for training that were made from stored trees."""

from __future__ import annotations

from alembic import op

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    """Make the tables."""
    op.execute(
        """
        CREATE TABLE datasets (
            id uuid PRIMARY KEY,
            tenant text,
            name text NOT NULL,
            kind text NOT NULL,
            manifest jsonb NOT NULL,
            manifest_sha256 text NOT NULL,
            samples bigint NOT NULL,
            created_at timestamptz DEFAULT now() NOT NULL,
            CONSTRAINT ck_datasets_kind CHECK (kind IN ('sft', 'preference'))
        );
        CREATE INDEX ix_datasets_manifest ON datasets (manifest_sha256);
        CREATE TABLE dataset_samples (
            dataset_id uuid NOT NULL REFERENCES datasets (id),
            sample_id text NOT NULL,
            role text NOT NULL,
            job_id uuid NOT NULL REFERENCES jobs (id),
            rollout_id integer NOT NULL,
            node_ids integer[] NOT NULL,
            PRIMARY KEY (dataset_id, sample_id, role),
            CONSTRAINT ck_dataset_samples_role CHECK (role IN ('sample', 'chosen', 'rejected'))
        );
        CREATE INDEX ix_dataset_samples_sample ON dataset_samples (sample_id);
        CREATE INDEX ix_dataset_samples_job ON dataset_samples (job_id);
        CREATE TRIGGER insert_only BEFORE UPDATE OR DELETE OR TRUNCATE ON datasets
            FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
        CREATE TRIGGER insert_only BEFORE UPDATE OR DELETE OR TRUNCATE ON dataset_samples
            FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
        """
    )
