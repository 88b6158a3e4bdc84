-- Only the app and the owner may lock this table, and so append to the chain.
CREATE TABLE chain_lock (id integer CONSTRAINT pk_chain_lock PRIMARY KEY);

-- Links carry the number of their format; no default stays: each new one states its own.
ALTER TABLE chain ADD format smallint DEFAULT 1 NOT NULL;
ALTER TABLE chain ALTER format DROP DEFAULT;

-- Which model a job was begun on is a part of the queue's order; ties are broken by id. The kinds
-- of job are a matter of the code.
ALTER TABLE jobs ADD begun_on text DEFAULT '' NOT NULL, ADD parked_at timestamptz,
    DROP CONSTRAINT ck_jobs_kind;
-- Those that may be claimed once more.
UPDATE jobs SET begun_on = (plan ->> 'model') || ' ' || (plan ->> 'revision')
    WHERE plan IS NOT NULL AND state IN ('queued', 'running', 'failed', 'dead');
DROP INDEX ix_jobs_line;
CREATE INDEX ix_jobs_line ON jobs (tenant, begun_on, turn_at, id)
    WHERE state = 'queued' AND paused_at IS NULL AND published_at IS NOT NULL;
CREATE INDEX ix_jobs_begun ON jobs (begun_on)
    WHERE state = 'queued' AND begun_on <> '' AND parked_at IS NULL;
CREATE INDEX ix_jobs_parked ON jobs (begun_on) WHERE state = 'queued' AND parked_at IS NOT NULL;
CREATE INDEX ix_jobs_to_cancel ON jobs (cancel_requested_at)
    WHERE state = 'queued' AND cancel_requested_at IS NOT NULL;

-- What a reward model or a verifier said, and the candidate that a fork begins with.
ALTER TABLE rollouts ADD scores double precision[], ADD forced integer;
