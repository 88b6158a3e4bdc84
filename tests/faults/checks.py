"""What must be true of the database when a storm is over. Every query lists offenders."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from marco_search.store.queue.states import FINAL
from tests.faults.model import Generated
from tests.faults.rig import Rig

_FINAL = ", ".join(f"'{state}'" for state in FINAL)
_ENDS = (
    "SELECT jobs.id, (SELECT count(*) FROM audit_log AS l WHERE l.job_id = jobs.id"  # noqa: S608
    f" AND l.event IN ({_FINAL})) AS ends FROM jobs"
)

CONSISTENT = {
    "every job has ended": "SELECT id, state FROM jobs WHERE finished_at IS NULL",
    "every job ended once": f"SELECT * FROM ({_ENDS}) AS e WHERE ends <> 1",  # noqa: S608
    "every success has one first answer": """
        SELECT id FROM jobs WHERE state = 'succeeded' AND 1 <> (SELECT count(*) FROM answers AS a
            WHERE a.job_id = jobs.id AND a.rank = 1)""",
    "answers are of one generation, the last": """
        SELECT id FROM jobs JOIN answers AS a ON a.job_id = id
        WHERE a.generation <> lease_generation""",
    "the totals are those of the trail": """
        SELECT id FROM jobs LEFT JOIN (SELECT job_id, count(*) AS n, max(round) AS last,
                count(DISTINCT round) AS rounds, sum(generated_tokens) AS tokens
            FROM rollouts GROUP BY job_id) AS r ON r.job_id = id
        WHERE (coalesce(n, 0), coalesce(r.last, 0), coalesce(r.rounds, 0), coalesce(tokens, 0))
            <> (jobs.rollouts, jobs.rounds, jobs.rounds, jobs.generated_tokens)""",
    "nodes are counted, and numbered without gaps": """
        SELECT id FROM jobs LEFT JOIN (SELECT job_id, count(*) AS n, max(node_id) AS last
            FROM nodes GROUP BY job_id) AS t ON t.job_id = id
        WHERE (coalesce(n, 0), coalesce(last, 0)) <> (jobs.nodes, jobs.nodes)""",
    "rollouts are numbered without gaps": """
        SELECT job_id FROM rollouts GROUP BY job_id
        HAVING (min(rollout_id), max(rollout_id)) <> (0, count(*) - 1)""",
    "every round was logged once": """
        SELECT id FROM jobs WHERE rounds <> (SELECT count(DISTINCT detail ->> 'round')
            FROM audit_log AS l WHERE l.job_id = jobs.id AND l.event = 'round')
        OR rounds <> (SELECT count(*) FROM audit_log AS l
            WHERE l.job_id = jobs.id AND l.event = 'round')""",
    "a round has one generation, and later ones none before it": """
        SELECT job_id FROM (SELECT job_id, round, min(generation) AS low, max(generation) AS high,
                lag(max(generation)) OVER (PARTITION BY job_id ORDER BY round) AS before
            FROM (SELECT job_id, round, generation FROM rollouts
                UNION ALL SELECT job_id, round, generation FROM nodes) AS both_tables
            GROUP BY job_id, round) AS r
        WHERE low <> high OR before > low""",
    "every node has its parent": """
        SELECT n.job_id, n.node_id FROM nodes AS n LEFT JOIN nodes AS p
            ON p.job_id = n.job_id AND p.node_id = n.parent_id
        WHERE n.parent_id <> 0 AND p.node_id IS NULL""",
    "every step of a rollout's path is an edge of the tree": """
        SELECT r.job_id FROM rollouts AS r
            CROSS JOIN LATERAL unnest(r.path) WITH ORDINALITY AS s (node_id, place)
            LEFT JOIN nodes AS n ON n.job_id = r.job_id AND n.node_id = s.node_id
        WHERE place > 1 AND n.parent_id IS DISTINCT FROM r.path[place - 1]
            OR place = 1 AND s.node_id <> 0""",
    "the root's visits are the rollouts": """
        SELECT s.job_id FROM audit.node_stats AS s JOIN (SELECT job_id, count(*) AS n FROM rollouts
            WHERE finish <> 'failed' GROUP BY job_id) AS r ON r.job_id = s.job_id
        WHERE s.node_id = 0 AND s.visits <> r.n""",
    "a node's visits are at least its children's": """
        WITH stats AS MATERIALIZED (SELECT * FROM audit.node_stats), below AS MATERIALIZED (
            SELECT n.job_id, n.parent_id AS node_id, sum(s.visits) AS visits
            FROM nodes AS n JOIN stats AS s USING (job_id, node_id)
            GROUP BY n.job_id, n.parent_id)
        SELECT job_id, node_id FROM stats JOIN below USING (job_id, node_id)
        WHERE stats.visits < below.visits""",
    "every answer's rollouts are there and reach it": """
        SELECT a.job_id FROM answers AS a CROSS JOIN LATERAL unnest(a.rollout_ids) AS u (i)
            LEFT JOIN rollouts AS r ON r.job_id = a.job_id AND r.rollout_id = u.i
        WHERE r.rollout_id IS NULL OR r.answer IS NULL""",
}


def inconsistencies(rig: Rig) -> list[str]:
    """What is wrong with the database, with the first offenders; empty if all is well."""
    rig.ask("ANALYZE")  # the planner has not seen these tables grow
    wrong = []
    for claim, query in CONSISTENT.items():
        offenders = rig.ask(query)
        if offenders:
            wrong.append(f"not true that {claim}: {len(offenders)}, e.g. {offenders[:3]}")
    return wrong


@dataclass(frozen=True, slots=True)
class Tokens:
    """What the model server generated against what the trail kept, in tokens."""

    generated: int
    committed: int
    again_uncommitted: int  # of rounds that were lost before they were committed
    again_committed: int  # asked for after the round was committed: must be 0


def tokens(rig: Rig, ledger: list[Generated]) -> Tokens:
    """Compare the server's ledger with the trail."""
    kept = {
        (int(tag), seed): (at, count)
        for tag, seed, at, count in rig.ask(
            "SELECT substring(j.payload ->> 'question' FROM '#([0-9]+)#'), r.seed,"
            " extract(epoch FROM l.at)::float8, r.generated_tokens"
            " FROM rollouts AS r JOIN jobs AS j ON j.id = r.job_id"
            " JOIN audit_log AS l ON l.job_id = r.job_id AND l.event = 'round'"
            " AND (l.detail ->> 'round')::int = r.round WHERE r.finish <> 'failed'"
        )
    }
    again = 0
    for call in ledger:
        # The second call of a branch that reflects has the next seed (runtime/program.py).
        found = kept.get((call.job, call.seed)) or kept.get((call.job, call.seed - 1))
        if found is not None and call.asked_at > found[0]:
            again += call.tokens
    generated = sum(call.tokens for call in ledger)
    committed = sum(count for _, count in kept.values())
    return Tokens(generated, committed, generated - committed - again, again)


def results_per_job(rig: Rig) -> Counter[int]:
    """How many jobs got how many results."""
    return Counter(ends for _, ends in rig.ask(_ENDS))
