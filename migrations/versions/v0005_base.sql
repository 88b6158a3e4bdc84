-- What version 0.1.0 made. Comments, views, functions and rights follow from the code:
-- marco_search.migrations.derived.

CREATE TABLE jobs (
    id uuid NOT NULL,
    tenant text NOT NULL,
    kind text NOT NULL,
    state text DEFAULT 'queued' NOT NULL,
    priority smallint NOT NULL,
    turn_at timestamptz DEFAULT now() NOT NULL,
    payload jsonb NOT NULL,
    expected text,
    payload_hash text NOT NULL,
    idempotency_key text,
    batch_id uuid,
    created_at timestamptz DEFAULT now() NOT NULL,
    run_after timestamptz DEFAULT now() NOT NULL,
    expires_at timestamptz,
    paused_at timestamptz,
    published_at timestamptz,
    started_at timestamptz,
    finished_at timestamptz,
    cancel_requested_at timestamptz,
    attempts integer DEFAULT 0 NOT NULL,
    failures integer DEFAULT 0 NOT NULL,
    losses integer DEFAULT 0 NOT NULL,
    lease_owner text,
    lease_generation bigint DEFAULT 0 NOT NULL,
    lease_expires_at timestamptz,
    plan jsonb,
    rounds integer DEFAULT 0 NOT NULL,
    rollouts integer DEFAULT 0 NOT NULL,
    nodes integer DEFAULT 0 NOT NULL,
    generated_tokens bigint DEFAULT 0 NOT NULL,
    prompt_tokens bigint DEFAULT 0 NOT NULL,
    cached_tokens bigint DEFAULT 0 NOT NULL,
    seconds double precision DEFAULT 0 NOT NULL,
    answer text,
    confidence double precision,
    correct boolean,
    stop_reason text,
    last_error jsonb,
    CONSTRAINT pk_jobs PRIMARY KEY (id),
    CONSTRAINT ck_jobs_state CHECK (
        state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled', 'expired', 'dead')
    ),
    CONSTRAINT ck_jobs_kind CHECK (kind IN ('reasoning', 'translation', 'open_ended')),
    CONSTRAINT ck_jobs_lease CHECK (
        (state = 'running') = (lease_owner IS NOT NULL AND lease_expires_at IS NOT NULL)
    ),
    CONSTRAINT ck_jobs_finished CHECK ((state IN ('queued', 'running')) = (finished_at IS NULL)),
    CONSTRAINT uq_jobs_tenant_idempotency_key UNIQUE (tenant, idempotency_key)
);

CREATE INDEX ix_jobs_to_publish ON jobs (run_after)
    WHERE state = 'queued' AND published_at IS NULL;
CREATE INDEX ix_jobs_waiting ON jobs (published_at)
    WHERE state = 'queued' AND published_at IS NOT NULL;
CREATE INDEX ix_jobs_line ON jobs (tenant, turn_at)
    WHERE state = 'queued' AND paused_at IS NULL AND published_at IS NOT NULL;
CREATE INDEX ix_jobs_running ON jobs (tenant)
    WHERE state = 'running';
CREATE INDEX ix_jobs_expires_at ON jobs (expires_at)
    WHERE finished_at IS NULL AND expires_at IS NOT NULL;
CREATE INDEX ix_jobs_given_up ON jobs (finished_at)
    WHERE state IN ('failed', 'dead');
CREATE INDEX ix_jobs_tenant_created_at ON jobs (tenant, created_at);
CREATE INDEX ix_jobs_batch_id ON jobs (batch_id)
    WHERE batch_id IS NOT NULL;

CREATE TABLE tenants (
    name text NOT NULL,
    paused_at timestamptz,
    max_queued integer,
    CONSTRAINT pk_tenants PRIMARY KEY (name)
);

CREATE TABLE attempts (
    job_id uuid NOT NULL,
    generation bigint NOT NULL,
    worker text NOT NULL,
    host text NOT NULL,
    pid integer NOT NULL,
    runtime text,
    runtime_version text,
    model text,
    revision text,
    config jsonb,
    prompt text,
    seed integer,
    started_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT pk_attempts PRIMARY KEY (job_id, generation),
    CONSTRAINT fk_attempts_job_id_jobs FOREIGN KEY (job_id) REFERENCES jobs (id)
);

CREATE TABLE audit_log (
    id bigint GENERATED ALWAYS AS IDENTITY,
    job_id uuid NOT NULL,
    generation bigint,
    event text NOT NULL,
    detail jsonb DEFAULT '{}' NOT NULL,
    at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT pk_audit_log PRIMARY KEY (job_id, id),
    CONSTRAINT fk_audit_log_job_id_jobs FOREIGN KEY (job_id) REFERENCES jobs (id)
) PARTITION BY RANGE (job_id);

CREATE SCHEMA partitions;

CREATE TABLE nodes (
    job_id uuid NOT NULL,
    generation bigint NOT NULL,
    node_id integer NOT NULL,
    parent_id integer NOT NULL,
    round integer NOT NULL,
    depth integer NOT NULL,
    action text NOT NULL,
    text text NOT NULL,
    token_ids integer[] NOT NULL,
    token_texts text[] NOT NULL,
    logprobs real[] NOT NULL,
    confidences double precision[] NOT NULL,
    top_ids integer[] NOT NULL,
    top_logprobs real[] NOT NULL,
    terminal boolean NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT pk_nodes PRIMARY KEY (job_id, node_id),
    CONSTRAINT ck_nodes_parent CHECK (0 <= parent_id AND parent_id < node_id),
    CONSTRAINT ck_nodes_tokens CHECK (
        cardinality(token_texts) = cardinality(token_ids)
        AND cardinality(logprobs) = cardinality(token_ids)
        AND cardinality(confidences) = cardinality(token_ids)
        AND cardinality(top_ids) = 5 * cardinality(token_ids)
        AND cardinality(top_logprobs) = 5 * cardinality(token_ids)
    ),
    CONSTRAINT fk_nodes_job_id_generation_attempts FOREIGN KEY (job_id, generation)
        REFERENCES attempts (job_id, generation)
) PARTITION BY RANGE (job_id);

CREATE INDEX ix_nodes_job_id_parent_id ON nodes (job_id, parent_id);

CREATE TABLE rollouts (
    job_id uuid NOT NULL,
    generation bigint NOT NULL,
    rollout_id integer NOT NULL,
    round integer NOT NULL,
    start_id integer NOT NULL,
    path integer[] NOT NULL,
    seed integer NOT NULL,
    reflect text NOT NULL,
    finish text NOT NULL,
    confidence double precision NOT NULL,
    path_confidence double precision NOT NULL,
    value double precision NOT NULL,
    answer text,
    generated_tokens integer NOT NULL,
    prompt_tokens integer NOT NULL,
    cached_tokens integer NOT NULL,
    seconds double precision NOT NULL,
    error text,
    created_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT pk_rollouts PRIMARY KEY (job_id, rollout_id),
    CONSTRAINT fk_rollouts_job_id_generation_attempts FOREIGN KEY (job_id, generation)
        REFERENCES attempts (job_id, generation)
) PARTITION BY RANGE (job_id);

CREATE TABLE answers (
    job_id uuid NOT NULL,
    generation bigint NOT NULL,
    rank integer NOT NULL,
    key text NOT NULL,
    text text NOT NULL,
    output text NOT NULL,
    thought text,
    confidence double precision NOT NULL,
    votes integer NOT NULL,
    share double precision NOT NULL,
    rollout_ids integer[] NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT pk_answers PRIMARY KEY (job_id, rank),
    CONSTRAINT fk_answers_job_id_generation_attempts FOREIGN KEY (job_id, generation)
        REFERENCES attempts (job_id, generation)
) PARTITION BY RANGE (job_id);

CREATE TABLE vocabulary (
    model text NOT NULL,
    revision text NOT NULL,
    token_id integer NOT NULL,
    text text NOT NULL,
    CONSTRAINT pk_vocabulary PRIMARY KEY (model, revision, token_id)
);

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% of % refused: the audit trail is insert only', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation';
END
$$;

CREATE TABLE auditors (
    role_name text NOT NULL,
    tenant text NOT NULL,
    CONSTRAINT pk_auditors PRIMARY KEY (role_name, tenant)
);

CREATE TABLE chain (
    seq bigint NOT NULL,
    kind text NOT NULL,
    job_id uuid,
    root bytea NOT NULL,
    previous bytea NOT NULL,
    head bytea NOT NULL,
    at timestamptz NOT NULL,
    CONSTRAINT pk_chain PRIMARY KEY (seq),
    CONSTRAINT ck_chain_kind CHECK (kind IN ('first', 'job', 'archive')),
    CONSTRAINT ck_chain_job CHECK ((kind = 'job') = (job_id IS NOT NULL)),
    CONSTRAINT fk_chain_job_id_jobs FOREIGN KEY (job_id) REFERENCES jobs (id)
);

CREATE INDEX ix_chain_job_id ON chain (job_id);

CREATE TABLE proofs (
    seq bigint NOT NULL,
    attempts bigint[] NOT NULL,
    events bigint[] NOT NULL,
    nodes integer[] NOT NULL,
    rollouts integer[] NOT NULL,
    answers integer[] NOT NULL,
    hashes bytea NOT NULL,
    CONSTRAINT pk_proofs PRIMARY KEY (seq),
    CONSTRAINT fk_proofs_seq_chain FOREIGN KEY (seq) REFERENCES chain (seq)
);

CREATE TABLE archives (
    seq bigint NOT NULL,
    first uuid NOT NULL,
    before uuid NOT NULL,
    files text NOT NULL,
    CONSTRAINT pk_archives PRIMARY KEY (seq),
    CONSTRAINT fk_archives_seq_chain FOREIGN KEY (seq) REFERENCES chain (seq)
);

DO $$ DECLARE name text; BEGIN
    FOREACH name IN ARRAY ARRAY[
        'attempts', 'nodes', 'rollouts', 'answers', 'audit_log', 'vocabulary', 'chain', 'proofs',
        'archives'
    ] LOOP
        EXECUTE format('CREATE TRIGGER insert_only BEFORE UPDATE OR DELETE OR TRUNCATE ON %I'
            ' FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', name);
    END LOOP;
END $$;
