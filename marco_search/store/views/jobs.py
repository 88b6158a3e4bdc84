"""Views of the jobs: what was asked and answered, who worked on it, and what happened."""

from __future__ import annotations

from marco_search.store.views.view import JOB, View

# The quantile says where a confidence lies among those that the model gives: absolute values
# differ from model to model and lie close together. Of the latest 10,000 jobs with an answer, so
# that its cost is bounded; the list is sorted once a query, and not at all where the column is
# not asked for. Negated, because width_bucket counts what is at most its operand.
JOBS = View(
    "jobs",
    "One line for each job: what was asked, what came out, what it cost",
    JOB
    | {
        "tenant": "Who it belongs to",
        "batch_id": "The batch it was submitted in",
        "kind": "reasoning, translation or open_ended",
        "state": "queued, running, succeeded, failed, cancelled, expired or dead",
        "priority": "0 is high, 3 normal, 6 low",
        "subject": "The question, text or prompt",
        "payload": "The request as submitted, without the expected answer",
        "payload_hash": "SHA-256 of the canonical request, hex",
        "idempotency_key": "The caller's name for the request, unique per tenant",
        "strategy": "How it is searched",
        "metadata": "What the caller attached to it",
        "answer": "The best answer",
        "confidence": "Its mean confidence, 0 to 1",
        "share": "Its part of the vote's total weight, 0 to 1; null: no answer, or archived",
        "confidence_quantile": "Part of its model's latest jobs whose confidence is lower, 0 to 1",
        "expected": "The answer the caller expects",
        "correct": "Whether the best answer is the expected one",
        "stop_reason": "Why the search ended",
        "rounds": "Rounds in the trail",
        "rollouts": "Rollouts in the trail",
        "rollout_budget": "Rollouts that its search may make; null before it was begun",
        "nodes": "Nodes in the trail",
        "generated_tokens": "Tokens generated",
        "prompt_tokens": "Tokens of all prefixes that were forked",
        "cached_tokens": "Of those, served from the prefix cache",
        "attempts": "Times a worker claimed it",
        "failures": "Of those, ended by an error",
        "losses": "Of those, whose worker was lost",
        "seconds": "Seconds of searching, over all attempts",
        "seconds_queued": "Seconds from submission to the first claim",
        "model": "Model it is searched with",
        "revision": "Revision of the model's weights",
        "seed": "Seed that all randomness of the search flows from",
        "config": "Every setting of the search; null before it was begun",
        "error_type": "Kind of the last error",
        "error": "The last error's message",
        "created_at": "When submitted",
        "started_at": "When first claimed",
        "finished_at": "When it reached a final state",
        "expires_at": "Deadline: not searched any more from this time on",
        "paused_at": "Since when it has been held back, it or its tenant; null: it is not",
        "parked_at": "Since when it waits for a worker with its model; null: it does not",
        "run_after": "Not claimed before this time (back-off after an error)",
        "cancel_requested_at": "When it was asked to stop while running",
        "lease_owner": "Worker that holds it; null: none",
    },
    """
SELECT id, tenant, batch_id, kind, state, priority,
    coalesce(payload ->> 'question', payload ->> 'text', payload ->> 'prompt'),
    payload, payload_hash, idempotency_key,
    payload #>> '{options,strategy}', payload -> 'metadata',
    answer, confidence,
    (SELECT a.share FROM public.answers AS a WHERE a.job_id = jobs.id AND a.rank = 1),
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
    ),
    expected, correct, stop_reason,
    rounds, rollouts, (plan #>> '{config,rollouts}')::integer, nodes, generated_tokens,
    prompt_tokens, cached_tokens, attempts, failures, losses, seconds,
    extract(epoch FROM started_at - created_at)::double precision,
    plan ->> 'model', plan ->> 'revision', (plan #>> '{config,seed}')::bigint,
    plan -> 'config',
    last_error ->> 'type', last_error ->> 'message', created_at, started_at, finished_at,
    expires_at,
    CASE WHEN finished_at IS NULL THEN least(paused_at, (
        SELECT min(t.paused_at) FROM public.tenants AS t WHERE t.name IN ('', jobs.tenant)
    )) END,
    parked_at, run_after, cancel_requested_at, lease_owner
FROM public.jobs
""",
)

ANSWERS = View(
    "answers",
    "The best distinct answers of each finished job, ranked, with the way to each",
    JOB
    | {
        "rank": "1 is the best",
        "key": "The form that votes are counted on",
        "text": "The answer as a reader should see it",
        "output": "Output part of its most confident rollout",
        "thought": "Thought of the same rollout",
        "confidence": "Mean value of its rollouts, 0 to 1",
        "votes": "Rollouts that reached it",
        "share": "Its part of the vote's total weight",
        "rollout_ids": "The rollouts that reached it",
        "best_rollout": "The most confident of them",
        "path": "Nodes from the root to where that one ended",
        "generation": "The attempt that wrote it",
        "created_at": "When it was written",
    },
    """
SELECT a.job_id, a.rank, a.key, a.text, a.output, a.thought, a.confidence, a.votes, a.share,
    a.rollout_ids, best.rollout_id, best.path, a.generation, a.created_at
FROM public.answers AS a LEFT JOIN LATERAL (
    SELECT r.rollout_id, r.path FROM public.rollouts AS r
    WHERE r.job_id = a.job_id AND r.rollout_id = ANY (a.rollout_ids)
    ORDER BY r.path_confidence DESC, r.rollout_id LIMIT 1
) AS best ON true
""",
)

ATTEMPTS = View(
    "attempts",
    "Claims of jobs by workers: with what each was run, what it added, and how it ended",
    JOB
    | {
        "generation": "Lease generation of the claim: grows with every attempt",
        "worker": "Name of the worker process",
        "host": "Machine it runs on",
        "pid": "Its process id there",
        "runtime": "Name of the engine; null here and below: it could not be used",
        "runtime_version": "Version of the engine",
        "model": "Name of the model",
        "revision": "Revision of its weights",
        "config": "Every setting of the search",
        "prompt": "The prompt, as the model was given it",
        "seed": "Seed that all randomness flows from",
        "started_at": "When claimed",
        "rounds": "Rounds it added to the trail",
        "rollouts": "Rollouts it added",
        "generated_tokens": "Tokens of those",
        "ended": "The last that is known of it: a final state, retried, ...; null: it was lost"
        " or still runs",
        "ended_at": "When that was",
        "error": "The error it ended with",
    },
    """
SELECT a.job_id, a.generation, a.worker, a.host, a.pid, a.runtime, a.runtime_version, a.model,
    a.revision, a.config, a.prompt, a.seed, a.started_at, w.rounds, w.rollouts,
    w.generated_tokens, e.event, e.at, e.detail ->> 'message'
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
) AS e ON true
""",
)

EVENTS = View(
    "events",
    "What happened to each job, in order",
    JOB
    | {
        "event_id": "In order of writing",
        "at": "When the transaction that wrote it began",
        "generation": "The attempt that did it; null: not a worker",
        "event": "submitted, published, claimed, round, retried, ... or a final state",
        "detail": "What there is to say about it",
    },
    "SELECT job_id, id, at, generation, event, detail FROM public.audit_log",
)

CHAIN = View(
    "chain",
    "The chain of hashes that `marco verify` checks: a link for each end of a job",
    {
        "seq": "0, 1, ... without a gap",
        "kind": "first, job or archive",
        "job_id": "The job that ended; null for the other kinds",
        "at": "When it was chained",
        "root": "Merkle root over all rows of the job, in hexadecimal",
        "previous": "Head of the link before",
        "head": "SHA-256 over all other columns: what `marco anchor` signs",
        "format": "By whose rules the link and its proof are made and checked",
    },
    """
SELECT seq, kind, job_id, at, encode(root, 'hex'), encode(previous, 'hex'), encode(head, 'hex'),
    format
FROM public.chain
""",
)
