"""Views that account for tokens and time: by job, batch, tenant and day."""

from __future__ import annotations

from marco_search import schema
from marco_search.store.views.view import JOB, View

_COUNTED = {
    name: str(schema.JOBS.c[name].comment)
    for name in (
        *("attempts", "rollouts", "nodes", "generated_tokens", "prompt_tokens", "cached_tokens"),
        "seconds",
    )
}
# bigint for counts: a sum of them is numeric, which programs read as text.
_SUMS = ", ".join(
    f"sum({name})::{'double precision' if name == 'seconds' else 'bigint'}" for name in _COUNTED
)
_QUEUED = "extract(epoch FROM started_at - created_at)::double precision"
_DAY = "(created_at AT TIME ZONE 'UTC')::date"

_TOTALS = {
    "jobs": "Jobs",
    "succeeded": "Of those, succeeded",
    "failed": "Failed or dead",
    "cancelled": "Cancelled",
    "expired": "Ended by their deadline",
    "checked": "Jobs with an answer and an expected one",
    "correct": "Of those, with the expected one",
    **_COUNTED,
    "seconds_queued": "Mean seconds from submission to the first claim",
}


def _totals(name: str, comment: str, by: dict[str, str], expressions: str, where: str) -> View:
    return View(
        name,
        comment,
        by | _TOTALS,
        f"""
SELECT {expressions}, count(*), count(*) FILTER (WHERE state = 'succeeded'),
    count(*) FILTER (WHERE state IN ('failed', 'dead')),
    count(*) FILTER (WHERE state = 'cancelled'), count(*) FILTER (WHERE state = 'expired'),
    count(correct), count(*) FILTER (WHERE correct),
    {_SUMS}, avg({_QUEUED})
FROM public.jobs WHERE {where} GROUP BY {expressions}
""",
    )


_TENANT = {"tenant": "Who the jobs belong to"}

JOB_USAGE = View(
    "job_usage",
    "Tokens and time of each job",
    JOB
    | _TENANT
    | {"batch_id": "The batch it was submitted in", "day": "Day of submission, UTC"}
    | _COUNTED
    | {"seconds_queued": "Seconds from submission to the first claim"},
    f"SELECT id, tenant, batch_id, {_DAY}, {', '.join(_COUNTED)}, {_QUEUED} FROM public.jobs",
)

BATCH_USAGE = _totals(
    "batch_usage",
    "Jobs, tokens and time of each batch",
    {"batch_id": "The batch"} | _TENANT,
    "batch_id, tenant",
    "batch_id IS NOT NULL",
)

TENANT_USAGE = _totals(
    "tenant_usage", "Jobs, tokens and time of each tenant", _TENANT, "tenant", "true"
)

DAY_USAGE = _totals(
    "day_usage",
    "Jobs, tokens and time of each tenant and day",
    {"day": "Day of submission, UTC"} | _TENANT,
    f"{_DAY}, tenant",
    "true",
)
