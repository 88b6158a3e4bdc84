"""The SQL that the demo shows: what can be asked of stored trees."""

from __future__ import annotations

from dataclasses import dataclass
from string import Template
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Query:
    """A question in words, and in SQL that `marco sql` runs as it stands."""

    title: str
    sql: str


_LEAST_SURE = """\
SELECT DISTINCT ON (a.job_id) right(a.job_id::text, 8) AS job, a.text AS answer,
    t.token, round(t.c::numeric, 3) AS confidence, n.text AS in_step
FROM jobs AS j
JOIN answers AS a ON a.job_id = j.id AND a.rank = 1
JOIN rollouts AS r ON r.job_id = j.id AND r.rollout_id = ANY (a.rollout_ids)
JOIN nodes AS n ON n.job_id = j.id AND n.node_id = ANY (r.path)
CROSS JOIN unnest(n.token_texts, n.confidences) AS t (token, c)
WHERE j.batch_id = '$batch'
ORDER BY a.job_id, r.path_confidence DESC, r.rollout_id, t.c"""

_WINNING_PATH = """\
WITH best AS (
    SELECT r.path FROM answers AS a
    JOIN rollouts AS r ON r.job_id = a.job_id AND r.rollout_id = ANY (a.rollout_ids)
    WHERE a.job_id = '$job' AND a.rank = 1
    ORDER BY r.path_confidence DESC, r.rollout_id LIMIT 1
)
SELECT t.depth, t.action, t.visits, round(t.value::numeric, 4) AS value,
    round(t.confidence::numeric, 4) AS confidence, t.text
FROM best JOIN tree AS t ON t.node_id = ANY (best.path)
WHERE t.job_id = '$job' ORDER BY t.depth"""

_COST = """\
SELECT kind, count(*) AS jobs, sum(generated_tokens) AS tokens,
    round(sum(seconds)::numeric, 1) AS seconds,
    round((sum(generated_tokens) / nullif(sum(seconds), 0))::numeric) AS tokens_per_second,
    round(max(seconds_queued)::numeric, 1) AS longest_in_queue
FROM audit.jobs WHERE batch_id = '$batch'
GROUP BY kind ORDER BY tokens DESC"""

_QUERIES = {
    "Of each answer, the token the model was least sure of": _LEAST_SURE,
    "Visits and value along the winning path of the tree above": _WINNING_PATH,
    "Tokens and time, by kind of job": _COST,
}


def demo_queries(batch_id: UUID, job_id: UUID) -> list[Query]:
    """Three queries on the jobs of one batch; the second looks at one job's tree."""
    return [
        Query(title, Template(sql).substitute(batch=batch_id, job=job_id))
        for title, sql in _QUERIES.items()
    ]
