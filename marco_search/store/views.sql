-- The views in the schema audit: the public SQL interface. Made by marco_search.migrations.derived.
-- Columns shown under the name they are stored by have the table's comment.

-- The quantile says where a confidence lies among those that the model gives: absolute values
-- differ from model to model and lie close together. Of the latest 10,000 jobs with an answer, so
-- that its cost is bounded; the list is sorted once a query, and not at all where the column is
-- not selected. Negated, because width_bucket counts what is at most its operand.
CREATE VIEW audit.jobs WITH (security_invoker = true) AS
SELECT id AS job_id, tenant, batch_id, batch_line, custom_id, kind, state, priority, {subject} AS subject,
    payload, payload_hash, idempotency_key,
    payload #>> '{options,strategy}' AS strategy, payload -> 'metadata' AS metadata,
    answer, confidence,
    (SELECT a.share FROM public.answers AS a WHERE a.job_id = jobs.id AND a.rank = 1) AS share,
    (
        WITH levels AS MATERIALIZED (
            SELECT model, revision, array_agg(-confidence ORDER BY -confidence) AS negated
            FROM (
                SELECT plan ->> 'model' AS model, plan ->> 'revision' AS revision, confidence
                FROM public.jobs WHERE confidence IS NOT NULL ORDER BY id DESC LIMIT 10000
            ) AS latest
            GROUP BY model, revision
        )
        SELECT 1 - width_bucket(-jobs.confidence, negated)::double precision / cardinality(negated)
        FROM levels WHERE model = plan ->> 'model' AND revision = plan ->> 'revision'
    ) AS confidence_quantile,
    expected, correct, stop_reason,
    rounds, rollouts, (plan #>> '{config,rollouts}')::integer AS rollout_budget, nodes,
    generated_tokens, prompt_tokens, cached_tokens, attempts, failures, losses, seconds,
    extract(epoch FROM started_at - created_at)::double precision AS seconds_queued,
    plan ->> 'model' AS model, plan ->> 'revision' AS revision,
    (plan #>> '{config,seed}')::bigint AS seed, plan -> 'config' AS config,
    last_error ->> 'type' AS error_type, last_error ->> 'message' AS error,
    created_at, started_at, finished_at, expires_at,
    CASE WHEN finished_at IS NULL THEN least(paused_at, (
        SELECT min(t.paused_at) FROM public.tenants AS t WHERE t.name IN ('', jobs.tenant)
    )) END AS paused_at,
    parked_at, run_after, cancel_requested_at, lease_owner, redacted_at
FROM public.jobs;
COMMENT ON VIEW audit.jobs IS 'One row per job: request, outcome and cost';
COMMENT ON COLUMN audit.jobs.job_id IS 'The job';
COMMENT ON COLUMN audit.jobs.subject IS 'The question, text or prompt';
COMMENT ON COLUMN audit.jobs.strategy IS 'How it is searched';
COMMENT ON COLUMN audit.jobs.metadata IS 'What the caller attached to it';
COMMENT ON COLUMN audit.jobs.share IS
    'Share of the votes'' total weight for its answer, 0 to 1; null: no answer, or archived';
COMMENT ON COLUMN audit.jobs.confidence_quantile IS
    'Share of its model''s latest jobs that have a lower confidence, 0 to 1';
COMMENT ON COLUMN audit.jobs.rollout_budget IS
    'Maximum rollouts of its search; null before it is started';
COMMENT ON COLUMN audit.jobs.seconds_queued IS 'Seconds from submission to the first claim';
COMMENT ON COLUMN audit.jobs.model IS 'Model it is searched with';
COMMENT ON COLUMN audit.jobs.revision IS 'Revision of the model''s weights';
COMMENT ON COLUMN audit.jobs.seed IS 'Seed of all randomness of the search';
COMMENT ON COLUMN audit.jobs.config IS 'Every setting of the search; null before it is started';
COMMENT ON COLUMN audit.jobs.error_type IS 'Kind of the last error';
COMMENT ON COLUMN audit.jobs.error IS 'The last error''s message';
COMMENT ON COLUMN audit.jobs.paused_at IS
    'When it or its tenant was paused; null: not paused';

-- What "the jobs of a batch" are, everywhere: of each line the latest, since starting one over
-- makes a new one in its place. A condition on batch or line goes into the scan of the index.
CREATE VIEW audit.batch_lines WITH (security_invoker = true) AS
(
    SELECT DISTINCT ON (batch_id, batch_line) batch_id, batch_line AS line, id AS job_id,
        custom_id, tenant, state, NULL AS field, NULL AS reason
    FROM public.jobs WHERE batch_id IS NOT NULL ORDER BY batch_id, batch_line, id DESC
)
UNION ALL
SELECT l.batch_id, l.line, l.known_id, l.custom_id, coalesce(j.tenant, b.tenant), j.state,
    l.field, l.reason
FROM public.batch_lines AS l JOIN public.batches AS b ON b.id = l.batch_id
LEFT JOIN public.jobs AS j ON j.id = l.known_id;
COMMENT ON VIEW audit.batch_lines IS
    'Non-empty lines of each batch, with the latest job of each, or the reason for its refusal';
COMMENT ON COLUMN audit.batch_lines.job_id IS
    'Its latest job, or the existing one of its idempotency key; null: refused';
COMMENT ON COLUMN audit.batch_lines.tenant IS 'The tenant of that job, or of the batch';
COMMENT ON COLUMN audit.batch_lines.state IS 'State of that job';

CREATE VIEW audit.batches WITH (security_invoker = true) AS
SELECT id AS batch_id, tenant, source, file_id, metadata, created_at, completed_at, finished_at,
    expires_at, cancelled_at, lines, refused, digest,
    (SELECT coalesce(jsonb_object_agg(state, count), '{}') FROM (
        SELECT l.state, count(*) FROM audit.batch_lines AS l
        WHERE l.batch_id = batches.id AND l.state IS NOT NULL GROUP BY l.state
    ) AS counted) AS states
FROM public.batches;
COMMENT ON VIEW audit.batches IS 'Files and lists of jobs that were submitted together';
COMMENT ON COLUMN audit.batches.batch_id IS 'The batch';
COMMENT ON COLUMN audit.batches.states IS
    'Jobs in each state: the latest of each line, including those of idempotency keys';

CREATE VIEW audit.answers WITH (security_invoker = true) AS
SELECT a.*, best.rollout_id AS best_rollout, best.path
FROM public.answers AS a JOIN public.jobs AS j ON j.id = a.job_id LEFT JOIN LATERAL (
    SELECT r.rollout_id, r.path FROM public.rollouts AS r
    WHERE r.job_id = a.job_id AND r.rollout_id = ANY (a.rollout_ids)
    ORDER BY CASE WHEN coalesce(j.plan #>> '{config,reward}', 'confidence')
        IN ('confidence', 'rollout') THEN r.path_confidence ELSE r.value END DESC,
        r.rollout_id LIMIT 1
) AS best ON true;
COMMENT ON VIEW audit.answers IS
    'The best distinct answers of each finished job, ranked, with the path to each';
COMMENT ON COLUMN audit.answers.best_rollout IS 'The most confident of its rollouts';
COMMENT ON COLUMN audit.answers.path IS 'Nodes from the root to where that one ended';

CREATE VIEW audit.node_stats WITH (security_invoker = true) AS
SELECT r.job_id, p.node_id, count(*) AS visits, avg(r.value) AS value,
    min(r.path[:p.position]) AS path  -- the same of all
FROM public.rollouts AS r
CROSS JOIN LATERAL unnest(r.path) WITH ORDINALITY AS p (node_id, position)
WHERE r.finish <> 'failed'
GROUP BY r.job_id, p.node_id;
COMMENT ON VIEW audit.node_stats IS
    'Visit count and value of every visited node, derived from the rollouts';
COMMENT ON COLUMN audit.node_stats.node_id IS 'The node; 0 is the root, the prompt';
COMMENT ON COLUMN audit.node_stats.visits IS
    'Rollouts that pass through it (failed ones do not count)';
COMMENT ON COLUMN audit.node_stats.value IS 'Q: mean of the values they backed up';
COMMENT ON COLUMN audit.node_stats.path IS 'Nodes from the root to this one';

CREATE VIEW audit.tree WITH (security_invoker = true) AS
SELECT n.job_id, n.node_id, n.parent_id, n.depth, n.round, n.action, n.text,
    cardinality(n.token_ids) AS tokens,
    (SELECT avg(c) FROM unnest(n.confidences) AS c) AS confidence,
    n.terminal, coalesce(s.visits, 0) AS visits, s.value,
    -- Of a node that was not visited, from the nodes above it: slower, as often as it is deep.
    coalesce(s.path, (WITH RECURSIVE up (node_id, parent_id, depth) AS (
        SELECT n.node_id, n.parent_id, n.depth
        UNION ALL
        SELECT a.node_id, a.parent_id, a.depth
        FROM up CROSS JOIN LATERAL (
            -- OFFSET: one look-up in the index each, however few rows the planner expects.
            SELECT * FROM public.nodes AS p
            WHERE p.job_id = n.job_id AND p.node_id = up.parent_id OFFSET 0
        ) AS a
    ) SELECT 0 || array_agg(up.node_id ORDER BY up.depth) FROM up)) AS path
FROM public.nodes AS n
LEFT JOIN audit.node_stats AS s ON s.job_id = n.job_id AND s.node_id = n.node_id
UNION ALL
SELECT j.id, 0, NULL, 0, 0, 'root', '', 0, NULL, false, coalesce(s.visits, 0), s.value, ARRAY[0]
FROM public.jobs AS j LEFT JOIN audit.node_stats AS s ON s.job_id = j.id AND s.node_id = 0
WHERE j.rounds > 0;
COMMENT ON VIEW audit.tree IS 'Search trees: every node with its visit count, value and path';
COMMENT ON COLUMN audit.tree.node_id IS 'The node; 0 is the root, the prompt';
COMMENT ON COLUMN audit.tree.parent_id IS 'The node above; null for the root';
COMMENT ON COLUMN audit.tree.action IS
    'root, reflection, answer, or how the thought is cut: span, step, mini_step, whole, ...';
COMMENT ON COLUMN audit.tree.tokens IS 'Tokens generated for it';
COMMENT ON COLUMN audit.tree.confidence IS 'Mean c_i of those tokens; null where there are none';
COMMENT ON COLUMN audit.tree.visits IS 'Rollouts that pass through it';
COMMENT ON COLUMN audit.tree.value IS
    'Q: mean of the values they backed up; null before the first visit';
COMMENT ON COLUMN audit.tree.path IS 'Nodes from the root to this one';

CREATE VIEW audit.rollouts WITH (security_invoker = true) AS
SELECT *, path[cardinality(path)] AS leaf_id FROM public.rollouts;
COMMENT ON VIEW audit.rollouts IS
    'Every branch that was generated, from the node it was forked from to where it ended';
COMMENT ON COLUMN audit.rollouts.leaf_id IS 'The node where it ended; start_id if it failed';

CREATE VIEW audit.forks WITH (security_invoker = true) AS
SELECT r.job_id, r.rollout_id, r.round, r.start_id, f.node_id, before.position,
    substring(before.text FROM '[^\n]*$') AS line,
    took.token_ids[1] AS taken_id, coalesce(a.text, took.token_texts[1]) AS taken,
    took.confidences[1] AS taken_share,
    r.forced AS passed_over_id, coalesce(b.text, f.token_texts[1]) AS passed_over,
    f.confidences[1] AS passed_over_share,
    o.rollout_id AS left_rollout, o.answer AS left_answer, r.answer,
    CASE WHEN r.finish <> 'failed' THEN r.answer IS DISTINCT FROM o.answer END AS changed
FROM public.rollouts AS r
CROSS JOIN LATERAL (
    SELECT coalesce(sum(cardinality(n.token_ids)), 0)::integer AS position,
        coalesce(string_agg(n.text, '' ORDER BY n.depth), '') AS text
    FROM unnest(r.path[:array_position(r.path, r.start_id)]) AS p (node_id)
    JOIN public.nodes AS n ON n.job_id = r.job_id AND n.node_id = p.node_id
) AS before
LEFT JOIN public.nodes AS f ON f.job_id = r.job_id
    AND f.node_id = r.path[array_position(r.path, r.start_id) + 1]
LEFT JOIN LATERAL (
    SELECT n.* FROM public.nodes AS n
    WHERE n.job_id = r.job_id AND n.parent_id = r.start_id AND cardinality(n.token_ids) > 0
    ORDER BY n.node_id LIMIT 1
) AS took ON true
LEFT JOIN LATERAL (
    SELECT e.rollout_id, e.answer FROM public.rollouts AS e
    WHERE e.job_id = r.job_id AND took.node_id = ANY (e.path) ORDER BY e.rollout_id LIMIT 1
) AS o ON true
LEFT JOIN public.attempts AS w ON w.job_id = r.job_id AND w.generation = r.generation
LEFT JOIN public.vocabulary AS a
    ON a.model = w.model AND a.revision = w.revision AND a.token_id = took.token_ids[1]
LEFT JOIN public.vocabulary AS b
    ON b.model = w.model AND b.revision = w.revision AND b.token_id = r.forced
WHERE r.forced IS NOT NULL;
COMMENT ON VIEW audit.forks IS
    'Rollouts that begin with a candidate passed over before: where the model was unsure';
COMMENT ON COLUMN audit.forks.start_id IS 'The node that it was forked from; 0: the prompt';
COMMENT ON COLUMN audit.forks.node_id IS 'Its first node; null if it failed';
COMMENT ON COLUMN audit.forks.position IS 'Tokens generated on the path before';
COMMENT ON COLUMN audit.forks.line IS 'The line of the thought up to there';
COMMENT ON COLUMN audit.forks.taken_id IS 'Token that was generated there before';
COMMENT ON COLUMN audit.forks.taken IS 'Text of that token';
COMMENT ON COLUMN audit.forks.taken_share IS 'Its share of the best five candidates, 0 to 1';
COMMENT ON COLUMN audit.forks.passed_over_id IS 'Token that the fork begins with';
COMMENT ON COLUMN audit.forks.passed_over IS 'Text of that token';
COMMENT ON COLUMN audit.forks.passed_over_share IS 'Its share; null if the fork failed';
COMMENT ON COLUMN audit.forks.left_rollout IS 'The rollout whose thought it branched off from';
COMMENT ON COLUMN audit.forks.left_answer IS 'The answer of that rollout; null: none';
COMMENT ON COLUMN audit.forks.answer IS 'The answer of the fork; null: none';
COMMENT ON COLUMN audit.forks.changed IS 'Whether they differ; null if the fork failed';

CREATE VIEW audit.rounds WITH (security_invoker = true) AS
SELECT job_id, round, max(generation) AS generation, count(*) AS rollouts,
    count(*) FILTER (WHERE finish = 'failed') AS failed, count(DISTINCT answer) AS answers,
    max(value) FILTER (WHERE finish <> 'failed') AS best_value,
    sum(generated_tokens) AS generated_tokens, max(seconds) AS seconds,
    max(created_at) AS committed_at
FROM public.rollouts
GROUP BY job_id, round;
COMMENT ON VIEW audit.rounds IS
    'Rounds of each search: branches requested together, and their outcome';
COMMENT ON COLUMN audit.rounds.round IS 'From 1';
COMMENT ON COLUMN audit.rounds.rollouts IS 'Branches requested';
COMMENT ON COLUMN audit.rounds.failed IS 'Of those, branches that failed';
COMMENT ON COLUMN audit.rounds.answers IS 'Distinct answers that the others reached';
COMMENT ON COLUMN audit.rounds.best_value IS 'The highest value that was backed up';
COMMENT ON COLUMN audit.rounds.generated_tokens IS 'Tokens generated';
COMMENT ON COLUMN audit.rounds.seconds IS 'Seconds of its slowest branch';
COMMENT ON COLUMN audit.rounds.committed_at IS 'When it was committed';

-- exp() of a number so low that the result is 0 is an error in Postgres, and would be one of the
-- whole query: -3.4e38 stands for a log-prob of minus infinity.
CREATE VIEW audit.tokens WITH (security_invoker = true) AS
SELECT n.job_id, n.node_id, t.position::integer AS position, t.token_id, t.text, t.logprob,
    CASE WHEN t.logprob < -700 THEN 0 ELSE exp(t.logprob::double precision) END AS probability,
    t.confidence
FROM public.nodes AS n
CROSS JOIN LATERAL unnest(n.token_ids, n.token_texts, n.logprobs, n.confidences)
    WITH ORDINALITY AS t (token_id, text, logprob, confidence, position);
COMMENT ON VIEW audit.tokens IS 'Every generated token with its probability and confidence';
COMMENT ON COLUMN audit.tokens.node_id IS 'The node';
COMMENT ON COLUMN audit.tokens.position IS 'Which token of the node, from 1';
COMMENT ON COLUMN audit.tokens.token_id IS 'Its number in the model''s vocabulary';
COMMENT ON COLUMN audit.tokens.text IS 'The text that it completes; empty inside a character';
COMMENT ON COLUMN audit.tokens.logprob IS 'Natural log of its probability';
COMMENT ON COLUMN audit.tokens.probability IS 'Its probability, 0 to 1';
COMMENT ON COLUMN audit.tokens.confidence IS
    'c_i: its probability over the sum of the best five''s';

CREATE VIEW audit.alternatives WITH (security_invoker = true) AS
SELECT n.job_id, n.node_id, ((a.i - 1) / 5 + 1)::integer AS position,
    ((a.i - 1) % 5 + 1)::integer AS rank, a.token_id, v.text, a.logprob,
    CASE WHEN a.logprob < -700 THEN 0 ELSE exp(a.logprob::double precision) END AS probability,
    a.token_id = n.token_ids[(a.i - 1) / 5 + 1] AS chosen
FROM public.nodes AS n
CROSS JOIN LATERAL unnest(n.top_ids, n.top_logprobs)
    WITH ORDINALITY AS a (token_id, logprob, i)
LEFT JOIN public.attempts AS w ON w.job_id = n.job_id AND w.generation = n.generation
LEFT JOIN public.vocabulary AS v
    ON v.model = w.model AND v.revision = w.revision AND v.token_id = a.token_id
WHERE a.token_id <> -1;
COMMENT ON VIEW audit.alternatives IS
    'The best candidates for every generated token, five at most';
COMMENT ON COLUMN audit.alternatives.node_id IS 'The node';
COMMENT ON COLUMN audit.alternatives.position IS 'Which token of the node, from 1';
COMMENT ON COLUMN audit.alternatives.rank IS '1 is the most probable';
COMMENT ON COLUMN audit.alternatives.token_id IS 'The candidate';
COMMENT ON COLUMN audit.alternatives.logprob IS 'Natural log of its probability';
COMMENT ON COLUMN audit.alternatives.probability IS 'Its probability, 0 to 1';
COMMENT ON COLUMN audit.alternatives.chosen IS 'Whether it is the token that was generated';

CREATE VIEW audit.nodes WITH (security_invoker = true) AS
SELECT * FROM public.nodes;
COMMENT ON VIEW audit.nodes IS
    'Nodes as stored, their tokens in arrays: for programs; people read audit.tree and audit.tokens';

CREATE VIEW audit.vocabulary WITH (security_invoker = true) AS
SELECT * FROM public.vocabulary;
COMMENT ON VIEW audit.vocabulary IS
    'Texts of tokens that were ever a candidate; not covered by `marco verify`';

CREATE VIEW audit.attempts WITH (security_invoker = true) AS
SELECT a.*, w.*, e.event AS ended, e.at AS ended_at, e.detail ->> 'message' AS error
FROM public.attempts AS a
CROSS JOIN LATERAL (
    SELECT count(DISTINCT r.round) AS rounds, count(*) AS rollouts,
        coalesce(sum(r.generated_tokens), 0) AS generated_tokens
    FROM public.rollouts AS r WHERE r.job_id = a.job_id AND r.generation = a.generation
) AS w
LEFT JOIN LATERAL (
    SELECT l.event, l.at, l.detail FROM public.audit_log AS l
    WHERE l.job_id = a.job_id AND l.generation = a.generation
        AND l.event NOT IN ('claimed', 'round')
    ORDER BY l.id DESC LIMIT 1
) AS e ON true;
COMMENT ON VIEW audit.attempts IS
    'Claims of jobs by workers: configuration and engine, what each added, and how it ended';
COMMENT ON COLUMN audit.attempts.rounds IS
    'Rounds it added to the trail; 0 here and below if the job is archived';
COMMENT ON COLUMN audit.attempts.rollouts IS 'Rollouts it added';
COMMENT ON COLUMN audit.attempts.generated_tokens IS 'Tokens of those rollouts';
COMMENT ON COLUMN audit.attempts.ended IS
    'Its last event: a final state, retried, ...; null: lost, or still running';
COMMENT ON COLUMN audit.attempts.ended_at IS 'When that was';
COMMENT ON COLUMN audit.attempts.error IS 'The error it ended with';

CREATE VIEW audit.models WITH (security_invoker = true) AS
SELECT model, revision, training ->> 'method' AS method,
    training ->> 'parent_model' AS parent_model,
    training ->> 'parent_revision' AS parent_revision,
    ARRAY(SELECT jsonb_array_elements_text(training -> 'manifests')) AS manifests,
    training ->> 'config_sha256' AS config_sha256, (training ->> 'seed')::bigint AS seed,
    count(*) AS claims, min(started_at) AS first_used, max(started_at) AS last_used
FROM public.attempts WHERE model IS NOT NULL GROUP BY model, revision, training;
COMMENT ON VIEW audit.models IS
    'Revisions of models that jobs were searched with, and what each was fine-tuned from and on';
COMMENT ON COLUMN audit.models.method IS
    'How it was trained: sft or dpo; null here and below: not recorded in its folder';
COMMENT ON COLUMN audit.models.parent_model IS 'Model that it was fine-tuned from';
COMMENT ON COLUMN audit.models.parent_revision IS 'Revision of that';
COMMENT ON COLUMN audit.models.manifests IS 'SHA-256 of the manifest of each data set';
COMMENT ON COLUMN audit.models.config_sha256 IS 'SHA-256 of the configuration of the training';
COMMENT ON COLUMN audit.models.seed IS 'Seed of the training';
COMMENT ON COLUMN audit.models.claims IS 'Claims of jobs by workers with it';
COMMENT ON COLUMN audit.models.first_used IS 'First claim of a job with it';
COMMENT ON COLUMN audit.models.last_used IS 'Last claim';

-- The same question: the same request, but for what has no part in the search, and the seed.
-- Of each revision the latest job with it. A condition on a revision goes into the scans.
CREATE VIEW audit.revision_pairs WITH (security_invoker = true) AS
WITH latest AS NOT MATERIALIZED (
    SELECT DISTINCT ON (model, revision, tenant, request) plan ->> 'model' AS model,
        plan ->> 'revision' AS revision, tenant, request, id, kind, {subject} AS subject,
        payload #>> '{options,strategy}' AS strategy, expected, answer, correct, confidence,
        generated_tokens
    FROM public.jobs CROSS JOIN LATERAL (
        SELECT payload - ARRAY['priority', 'deadline', 'expires_in_s', 'metadata', 'endpoint']
            #- '{options,seed}' AS request
    ) AS asked
    WHERE state = 'succeeded' AND redacted_at IS NULL
    ORDER BY model, revision, tenant, request, id DESC
)
SELECT o.tenant, o.kind, o.subject, o.strategy,
    o.model AS old_model, o.revision AS old_revision, o.id AS old_job, o.answer AS old_answer,
    o.correct AS old_correct, o.confidence AS old_confidence, o.generated_tokens AS old_tokens,
    n.model AS new_model, n.revision AS new_revision, n.id AS new_job, n.answer AS new_answer,
    n.correct AS new_correct, n.confidence AS new_confidence, n.generated_tokens AS new_tokens,
    coalesce(a.key, o.answer) IS DISTINCT FROM coalesce(b.key, n.answer) AS changed
FROM latest AS o
JOIN latest AS n USING (tenant, request)
LEFT JOIN public.answers AS a ON a.job_id = o.id AND a.rank = 1
LEFT JOIN public.answers AS b ON b.job_id = n.id AND b.rank = 1
WHERE (o.model, o.revision) <> (n.model, n.revision);
COMMENT ON VIEW audit.revision_pairs IS
    'Questions searched with two model revisions, in both orders: filter by both';
COMMENT ON COLUMN audit.revision_pairs.subject IS 'The question, text or prompt';
COMMENT ON COLUMN audit.revision_pairs.strategy IS 'How it is searched: the same with both';
COMMENT ON COLUMN audit.revision_pairs.old_job IS 'The latest job that it searched';
COMMENT ON COLUMN audit.revision_pairs.new_job IS 'The latest job that it searched';
COMMENT ON COLUMN audit.revision_pairs.changed IS 'Whether the best answers differ';

DO $$ DECLARE about text[]; BEGIN
    FOREACH about SLICE 1 IN ARRAY ARRAY[
        ['model', 'Name of the %s model'], ['revision', 'Revision of its weights'],
        ['answer', 'Its best answer'], ['correct', 'Whether that is the expected one'],
        ['confidence', 'Its mean confidence, 0 to 1'], ['tokens', 'Tokens it generated']
    ] LOOP
        EXECUTE format('COMMENT ON COLUMN audit.revision_pairs.%I IS %L',
            'old_' || about[1], format(about[2], 'one'));
        EXECUTE format('COMMENT ON COLUMN audit.revision_pairs.%I IS %L',
            'new_' || about[1], format(about[2], 'other'));
    END LOOP;
END $$;

CREATE VIEW audit.events WITH (security_invoker = true) AS
SELECT job_id, id AS event_id, at, generation, event, detail FROM public.audit_log;
COMMENT ON VIEW audit.events IS 'What happened to each job, in order';
COMMENT ON COLUMN audit.events.event_id IS 'In order of writing';

CREATE VIEW audit.job_usage WITH (security_invoker = true) AS
SELECT id AS job_id, tenant, batch_id, (created_at AT TIME ZONE 'UTC')::date AS day,
    attempts, rollouts, nodes, generated_tokens, prompt_tokens, cached_tokens, seconds,
    extract(epoch FROM started_at - created_at)::double precision AS seconds_queued
FROM public.jobs;
COMMENT ON VIEW audit.job_usage IS 'Tokens and time of each job';
COMMENT ON COLUMN audit.job_usage.job_id IS 'The job';
COMMENT ON COLUMN audit.job_usage.day IS 'Day of submission, UTC';
COMMENT ON COLUMN audit.job_usage.seconds_queued IS 'Seconds from submission to the first claim';

CREATE VIEW audit.batch_usage WITH (security_invoker = true) AS
SELECT l.batch_id, j.tenant,
    count(*) AS jobs, count(*) FILTER (WHERE j.state = 'succeeded') AS succeeded,
    count(*) FILTER (WHERE j.state IN ('failed', 'dead')) AS failed,
    count(*) FILTER (WHERE j.state = 'cancelled') AS cancelled,
    count(*) FILTER (WHERE j.state = 'expired') AS expired,
    count(correct) AS checked, count(*) FILTER (WHERE correct) AS correct,
    sum(attempts)::bigint AS attempts, sum(rollouts)::bigint AS rollouts,
    sum(nodes)::bigint AS nodes, sum(generated_tokens)::bigint AS generated_tokens,
    sum(prompt_tokens)::bigint AS prompt_tokens, sum(cached_tokens)::bigint AS cached_tokens,
    sum(seconds)::double precision AS seconds,
    avg(extract(epoch FROM started_at - created_at)::double precision) AS seconds_queued
FROM audit.batch_lines AS l JOIN public.jobs AS j ON j.id = l.job_id GROUP BY l.batch_id, j.tenant;
COMMENT ON VIEW audit.batch_usage IS
    'Jobs, tokens and time of each batch; of each line the latest job counts, as in batches';
COMMENT ON COLUMN audit.batch_usage.batch_id IS 'The batch';

CREATE VIEW audit.tenant_usage WITH (security_invoker = true) AS
SELECT tenant,
    count(*) AS jobs, count(*) FILTER (WHERE state = 'succeeded') AS succeeded,
    count(*) FILTER (WHERE state IN ('failed', 'dead')) AS failed,
    count(*) FILTER (WHERE state = 'cancelled') AS cancelled,
    count(*) FILTER (WHERE state = 'expired') AS expired,
    count(correct) AS checked, count(*) FILTER (WHERE correct) AS correct,
    sum(attempts)::bigint AS attempts, sum(rollouts)::bigint AS rollouts,
    sum(nodes)::bigint AS nodes, sum(generated_tokens)::bigint AS generated_tokens,
    sum(prompt_tokens)::bigint AS prompt_tokens, sum(cached_tokens)::bigint AS cached_tokens,
    sum(seconds)::double precision AS seconds,
    avg(extract(epoch FROM started_at - created_at)::double precision) AS seconds_queued
FROM public.jobs GROUP BY tenant;
COMMENT ON VIEW audit.tenant_usage IS 'Jobs, tokens and time of each tenant';

CREATE VIEW audit.day_usage WITH (security_invoker = true) AS
SELECT (created_at AT TIME ZONE 'UTC')::date AS day, tenant,
    count(*) AS jobs, count(*) FILTER (WHERE state = 'succeeded') AS succeeded,
    count(*) FILTER (WHERE state IN ('failed', 'dead')) AS failed,
    count(*) FILTER (WHERE state = 'cancelled') AS cancelled,
    count(*) FILTER (WHERE state = 'expired') AS expired,
    count(correct) AS checked, count(*) FILTER (WHERE correct) AS correct,
    sum(attempts)::bigint AS attempts, sum(rollouts)::bigint AS rollouts,
    sum(nodes)::bigint AS nodes, sum(generated_tokens)::bigint AS generated_tokens,
    sum(prompt_tokens)::bigint AS prompt_tokens, sum(cached_tokens)::bigint AS cached_tokens,
    sum(seconds)::double precision AS seconds,
    avg(extract(epoch FROM started_at - created_at)::double precision) AS seconds_queued
FROM public.jobs GROUP BY (created_at AT TIME ZONE 'UTC')::date, tenant;
COMMENT ON VIEW audit.day_usage IS 'Jobs, tokens and time of each tenant and day';
COMMENT ON COLUMN audit.day_usage.day IS 'Day of submission, UTC';

DO $$ DECLARE name text; about text[]; BEGIN
    FOREACH name IN ARRAY ARRAY['batch_usage', 'tenant_usage', 'day_usage'] LOOP
        FOREACH about SLICE 1 IN ARRAY ARRAY[
            ['jobs', 'Jobs'], ['succeeded', 'Of those, succeeded'], ['failed', 'Failed or dead'],
            ['cancelled', 'Cancelled'], ['expired', 'Ended by their deadline'],
            ['checked', 'Searched to an end, with an expected answer'],
            ['correct', 'Of those, with the expected one'],
            ['seconds_queued', 'Mean seconds from submission to the first claim']
        ] LOOP
            EXECUTE format('COMMENT ON COLUMN audit.%I.%I IS %L', name, about[1], about[2]);
        END LOOP;
    END LOOP;
END $$;

CREATE VIEW audit.chain WITH (security_invoker = true) AS
SELECT seq, kind, job_id, at, encode(root, 'hex') AS root, encode(previous, 'hex') AS previous,
    encode(head, 'hex') AS head, format
FROM public.chain;
COMMENT ON VIEW audit.chain IS
    'The hash chain that `marco verify` checks: a link whenever a job ends';

CREATE VIEW audit.datasets WITH (security_invoker = true) AS
SELECT id AS dataset_id, tenant, name, kind, manifest, manifest_sha256, samples, created_at
FROM public.datasets;
COMMENT ON VIEW audit.datasets IS 'Data sets for training that were made from stored trees';
COMMENT ON COLUMN audit.datasets.dataset_id IS 'The data set';

CREATE VIEW audit.dataset_samples WITH (security_invoker = true) AS
SELECT s.dataset_id, d.name, d.manifest_sha256, s.sample_id, s.role, j.tenant, s.job_id,
    s.rollout_id, s.node_ids, r.answer, coalesce(j.plan #>> '{config,turn,opening}', '') || (
        SELECT string_agg(n.text, '' ORDER BY n.depth) FROM public.nodes AS n
        WHERE n.job_id = s.job_id AND n.node_id = ANY (s.node_ids)
    ) AS text
FROM public.dataset_samples AS s JOIN public.datasets AS d ON d.id = s.dataset_id
JOIN public.jobs AS j ON j.id = s.job_id
LEFT JOIN public.rollouts AS r ON r.job_id = s.job_id AND r.rollout_id = s.rollout_id;
COMMENT ON VIEW audit.dataset_samples IS
    'The tree paths that data sets consist of, with their texts';
COMMENT ON COLUMN audit.dataset_samples.name IS 'What the data set is called';
COMMENT ON COLUMN audit.dataset_samples.text IS
    'The model''s turn along these nodes; null: the tree is archived';

DO $$ DECLARE stored record; BEGIN
    FOR stored IN
        SELECT DISTINCT ON (v.oid, shown.attnum) v.relname, shown.attname,
            col_description(t.oid, kept.attnum) AS text
        FROM pg_class AS v
        JOIN pg_attribute AS shown ON shown.attrelid = v.oid AND shown.attnum > 0
        JOIN pg_rewrite AS r ON r.ev_class = v.oid
        JOIN pg_depend AS d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
        JOIN pg_class AS t ON d.refclassid = 'pg_class'::regclass AND t.oid = d.refobjid
            AND t.relnamespace = 'public'::regnamespace
        JOIN pg_attribute AS kept ON kept.attrelid = t.oid AND kept.attnum = d.refobjsubid
            AND kept.attname = shown.attname
        WHERE v.relnamespace = 'audit'::regnamespace
            AND col_description(v.oid, shown.attnum) IS NULL
        ORDER BY v.oid, shown.attnum, t.relname
    LOOP
        EXECUTE format('COMMENT ON COLUMN audit.%I.%I IS %L',
            stored.relname, stored.attname, stored.text);
    END LOOP;
END $$;
