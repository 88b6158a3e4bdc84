-- Each job gets a salt of its own for the hashes of its texts, and may be redacted.
ALTER TABLE jobs ADD salt uuid DEFAULT gen_random_uuid(), ADD redacted_at timestamptz,
    ADD batch_line integer, ADD custom_id text;
CREATE TABLE redactions (
    job_id uuid PRIMARY KEY REFERENCES jobs (id),
    by text NOT NULL DEFAULT session_user,
    at timestamptz NOT NULL DEFAULT now(),
    commitments bytea NOT NULL,
    transaction bigint NOT NULL DEFAULT (pg_current_xact_id()::text)::bigint
);
CREATE TRIGGER insert_only BEFORE UPDATE OR DELETE OR TRUNCATE ON redactions
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
ALTER TABLE chain DROP CONSTRAINT ck_chain_kind, DROP CONSTRAINT ck_chain_job,
    ADD CONSTRAINT ck_chain_kind CHECK (kind IN ('first', 'job', 'redaction', 'archive')),
    ADD CONSTRAINT ck_chain_job CHECK ((kind IN ('job', 'redaction')) = (job_id IS NOT NULL));
ALTER TABLE attempts ADD training jsonb;

-- Batches; those that are there were complete, in the order of their jobs, and get no delivery.
CREATE TABLE batches (
    id uuid PRIMARY KEY,
    tenant text NOT NULL,
    source text,
    metadata jsonb DEFAULT '{}' NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    completed_at timestamptz,
    lines integer DEFAULT 0 NOT NULL,
    refused integer DEFAULT 0 NOT NULL,
    digest text,
    finished_at timestamptz,
    file_id uuid,
    expires_at timestamptz,
    cancelled_at timestamptz
);
CREATE TABLE batch_lines (
    batch_id uuid NOT NULL REFERENCES batches (id),
    line integer NOT NULL,
    custom_id text,
    known_id uuid,
    field text,
    reason text,
    PRIMARY KEY (batch_id, line)
);
UPDATE jobs SET batch_line = numbered.line FROM (
    SELECT id, row_number() OVER (PARTITION BY batch_id ORDER BY id) AS line
    FROM jobs WHERE batch_id IS NOT NULL
) AS numbered WHERE numbered.id = jobs.id;
INSERT INTO batches (id, tenant, created_at, completed_at, lines, finished_at)
    SELECT batch_id, min(tenant), min(created_at), max(created_at), count(*),
        CASE WHEN count(*) = count(finished_at)
            THEN greatest(max(created_at), max(finished_at)) END
    FROM jobs WHERE batch_id IS NOT NULL GROUP BY batch_id;
CREATE INDEX ix_batches_source ON batches (tenant, source) WHERE completed_at IS NULL;
CREATE INDEX ix_batches_unfinished ON batches (id) WHERE finished_at IS NULL;
DROP INDEX ix_jobs_batch_id;
CREATE INDEX ix_jobs_batch_id ON jobs (batch_id, batch_line, id) WHERE batch_id IS NOT NULL;
CREATE INDEX ix_jobs_unfinished ON jobs (batch_id)
    WHERE finished_at IS NULL AND batch_id IS NOT NULL;

-- The HTTP API: keys, files, webhooks.
CREATE TABLE api_keys (
    id text PRIMARY KEY,
    hash bytea NOT NULL,
    tenant text NOT NULL,
    name text DEFAULT '' NOT NULL,
    rights text[] NOT NULL,
    per_minute integer,
    created_at timestamptz DEFAULT now() NOT NULL,
    expires_at timestamptz,
    revoked_at timestamptz,
    due_at timestamptz DEFAULT now() NOT NULL
);
CREATE TABLE files (
    id uuid PRIMARY KEY,
    tenant text NOT NULL,
    name text NOT NULL,
    bytes bigint NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    expires_at timestamptz
);
CREATE INDEX ix_files_tenant ON files (tenant, id);
CREATE TABLE file_parts (
    file_id uuid NOT NULL REFERENCES files (id) ON DELETE CASCADE,
    number integer NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (file_id, number)
);
CREATE TABLE webhooks (
    id uuid DEFAULT gen_random_uuid() PRIMARY KEY,
    tenant text NOT NULL,
    url text NOT NULL,
    events text[] NOT NULL,
    secret text NOT NULL,
    old_secret text,
    old_until timestamptz,
    created_at timestamptz DEFAULT now() NOT NULL
);
CREATE TABLE webhook_deliveries (
    id uuid DEFAULT gen_random_uuid() PRIMARY KEY,
    webhook_id uuid NOT NULL REFERENCES webhooks (id) ON DELETE CASCADE,
    event text NOT NULL,
    job_id uuid,
    batch_id uuid,
    created_at timestamptz DEFAULT now() NOT NULL,
    state text DEFAULT 'pending' NOT NULL CHECK (state IN ('pending', 'delivered', 'failed')),
    attempts integer DEFAULT 0 NOT NULL,
    next_at timestamptz DEFAULT now() NOT NULL,
    tried_at timestamptz,
    error text
);
CREATE INDEX ix_webhook_deliveries_pending ON webhook_deliveries (webhook_id, next_at)
    WHERE state = 'pending';
CREATE INDEX ix_webhook_deliveries_created_at ON webhook_deliveries (webhook_id, created_at);

-- Data sets for training that were made from stored trees.
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
