-- The kinds of job are a matter of the code: a new one needs no migration.

ALTER TABLE jobs DROP CONSTRAINT ck_jobs_kind;
