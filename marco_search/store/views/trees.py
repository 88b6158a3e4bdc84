"""Views of the search trees: nodes with visit counts and values, rollouts, rounds."""

from __future__ import annotations

from marco_search import schema
from marco_search.store.views.view import JOB, View, selected, stored

NODE = {"node_id": "The node; 0 is the root, the prompt"}

NODE_STATS = View(
    "node_stats",
    "Visit count and value of every visited node, derived from the rollouts",
    JOB
    | NODE
    | {
        "visits": "Rollouts that pass through it (failed ones do not count)",
        "value": "Q: mean of the values they backed up",
    },
    """
SELECT r.job_id, p.node_id, count(*), avg(r.value)
FROM public.rollouts AS r CROSS JOIN LATERAL unnest(r.path) AS p (node_id)
WHERE r.finish <> 'failed'
GROUP BY r.job_id, p.node_id
""",
)

TREE = View(
    "tree",
    "Search trees: every node with its visit count, value and path",
    JOB
    | NODE
    | {
        "parent_id": "The node above; null for the root",
        "depth": "Edges from the root",
        "round": "The round that added it",
        "action": "root, step, mini_step, whole, reflection or answer",
        "text": "What the action adds to the text of its parent",
        "tokens": "Tokens generated for it",
        "confidence": "Mean c_i of those tokens; null where there are none",
        "terminal": "Whether the text ends here",
        "visits": "Rollouts that pass through it",
        "value": "Q: mean of the values they backed up; null before the first visit",
        "path": "Nodes from the root to this one",
    },
    """
SELECT n.job_id, n.node_id, n.parent_id, n.depth, n.round, n.action, n.text,
    cardinality(n.token_ids),
    (SELECT avg(c) FROM unnest(n.confidences) AS c),
    n.terminal, coalesce(s.visits, 0), s.value,
    (WITH RECURSIVE up (node_id, parent_id, depth) AS (
        SELECT n.node_id, n.parent_id, n.depth
        UNION ALL
        SELECT a.node_id, a.parent_id, a.depth
        FROM up CROSS JOIN LATERAL (
            -- OFFSET: one look-up in the index each, however few rows the planner expects.
            SELECT * FROM public.nodes AS p
            WHERE p.job_id = n.job_id AND p.node_id = up.parent_id OFFSET 0
        ) AS a
    ) SELECT 0 || array_agg(up.node_id ORDER BY up.depth) FROM up)
FROM public.nodes AS n
LEFT JOIN audit.node_stats AS s ON s.job_id = n.job_id AND s.node_id = n.node_id
UNION ALL
SELECT j.id, 0, NULL, 0, 0, 'root', '', 0, NULL, false, coalesce(s.visits, 0), s.value, ARRAY[0]
FROM public.jobs AS j LEFT JOIN audit.node_stats AS s ON s.job_id = j.id AND s.node_id = 0
WHERE j.rounds > 0
""",
)

NODES = selected(
    "nodes",
    "Nodes as they are stored, their tokens in arrays: for programs; tree and tokens are to read",
    stored(schema.NODES),
    "public.nodes",
)

ROLLOUTS = selected(
    "rollouts",
    "Every branch that was generated, from the node it was forked from to where it ended",
    stored(schema.ROLLOUTS)
    | {
        "leaf_id": ("path[cardinality(path)]", "The node where it ended; start_id if it failed"),
    },
    "public.rollouts",
)

ROUNDS = View(
    "rounds",
    "Rounds of each search: what was asked of the model at once, and what came of it",
    JOB
    | {
        "round": "From 1",
        "generation": "The attempt that wrote it",
        "rollouts": "Branches asked for",
        "failed": "Of those, branches that failed",
        "answers": "Distinct answers that the others reached",
        "best_value": "The highest value that was backed up",
        "generated_tokens": "Tokens generated",
        "seconds": "Seconds of its slowest branch",
        "committed_at": "When it was committed",
    },
    """
SELECT job_id, round, max(generation), count(*), count(*) FILTER (WHERE finish = 'failed'),
    count(DISTINCT answer), max(value) FILTER (WHERE finish <> 'failed'), sum(generated_tokens),
    max(seconds), max(created_at)
FROM public.rollouts
GROUP BY job_id, round
""",
)
