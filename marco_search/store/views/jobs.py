"""Views of the jobs: what was asked and answered, who worked on it, and what happened."""

from __future__ import annotations

from marco_search import schema
from marco_search.store.queue.states import SUBJECT
from marco_search.store.views.view import selected, stored

# The quantile says where a confidence lies among those that the model gives: absolute values
# differ from model to model and lie close together. Of the latest 10,000 jobs with an answer, so
# that its cost is bounded; the list is sorted once a query, and not at all where the column is
# not selected. Negated, because width_bucket counts what is at most its operand.
_QUANTILE = """(
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
)"""
_SHARE = "(SELECT a.share FROM public.answers AS a WHERE a.job_id = jobs.id AND a.rank = 1)"
_PAUSED = """CASE WHEN finished_at IS NULL THEN least(paused_at, (
    SELECT min(t.paused_at) FROM public.tenants AS t WHERE t.name IN ('', jobs.tenant)
)) END"""
_INTERNAL = (
    *("id", "plan", "last_error", "turn_at", "published_at", "paused_at", "begun_on"),
    *("lease_generation", "lease_expires_at"),
)
_DERIVED = {
    "subject": (SUBJECT, "The question, text or prompt"),
    "strategy": ("payload #>> '{options,strategy}'", "How it is searched"),
    "metadata": ("payload -> 'metadata'", "What the caller attached to it"),
    "share": (
        _SHARE,
        "Its answer's part of the vote's total weight, 0 to 1; null: no answer, or archived",
    ),
    "confidence_quantile": (
        _QUANTILE,
        "Part of its model's latest jobs whose confidence is lower, 0 to 1",
    ),
    "rollout_budget": (
        "(plan #>> '{config,rollouts}')::integer",
        "Rollouts that its search may make; null before it was begun",
    ),
    "seconds_queued": (
        "extract(epoch FROM started_at - created_at)::double precision",
        "Seconds from submission to the first claim",
    ),
    "model": ("plan ->> 'model'", "Model it is searched with"),
    "revision": ("plan ->> 'revision'", "Revision of the model's weights"),
    "seed": (
        "(plan #>> '{config,seed}')::bigint",
        "Seed that all randomness of the search flows from",
    ),
    "config": ("plan -> 'config'", "Every setting of the search; null before it was begun"),
    "error_type": ("last_error ->> 'type'", "Kind of the last error"),
    "error": ("last_error ->> 'message'", "The last error's message"),
    "paused_at": (
        _PAUSED,
        "Since when it has been paused, it or its tenant; null: it is not",
    ),
}

JOBS = selected(
    "jobs",
    "One line for each job: what was asked, what came out, what it cost",
    {"job_id": ("id", "The job")} | stored(schema.JOBS, without=_INTERNAL) | _DERIVED,
    "public.jobs",
)

ANSWERS = selected(
    "answers",
    "The best distinct answers of each finished job, ranked, with the way to each",
    stored(schema.ANSWERS, "a")
    | {
        "best_rollout": ("best.rollout_id", "The most confident of its rollouts"),
        "path": ("best.path", "Nodes from the root to where that one ended"),
    },
    """public.answers AS a LEFT JOIN LATERAL (
    SELECT r.rollout_id, r.path FROM public.rollouts AS r
    WHERE r.job_id = a.job_id AND r.rollout_id = ANY (a.rollout_ids)
    ORDER BY r.path_confidence DESC, r.rollout_id LIMIT 1
) AS best ON true""",
)

ATTEMPTS = selected(
    "attempts",
    "Claims of jobs by workers: with what each was run, what it added, and how it ended",
    stored(schema.ATTEMPTS, "a")
    | {
        "rounds": ("w.rounds", "Rounds it added to the trail"),
        "rollouts": ("w.rollouts", "Rollouts it added"),
        "generated_tokens": ("w.generated_tokens", "Tokens of those"),
        "ended": (
            "e.event",
            "Its last event: a final state, retried, ...; null: it was lost or still runs",
        ),
        "ended_at": ("e.at", "When that was"),
        "error": ("e.detail ->> 'message'", "The error it ended with"),
    },
    """public.attempts AS a
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
) AS e ON true""",
)

_EVENT = stored(schema.AUDIT_LOG)
EVENTS = selected(
    "events",
    "What happened to each job, in order",
    {"job_id": _EVENT.pop("job_id"), "event_id": _EVENT.pop("id")} | _EVENT,
    "public.audit_log",
)

CHAIN = selected(
    "chain",
    "The chain of hashes that `marco verify` checks: a link for each end of a job",
    stored(schema.CHAIN)
    | {
        name: (f"encode({name}, 'hex')", f"{schema.CHAIN.c[name].comment}, in hexadecimal")
        for name in ("root", "previous", "head")
    },
    "public.chain",
)
