"""Views of the search trees: nodes with visit counts and values, rollouts, rounds."""

from __future__ import annotations

from marco_search.store.views.view import JOB, View

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

NODES = View(
    "nodes",
    "Nodes as they are stored, their tokens in arrays: for programs; tree and tokens are to read",
    JOB
    | {
        "node_id": "1, 2, ... in order of growth; the root is not stored",
        "parent_id": "The node above; 0 is the root, the prompt",
        "generation": "The attempt that wrote it",
        "round": "The round that added it, from 1",
        "depth": "Edges from the root",
        "action": "step, mini_step, whole, reflection or answer",
        "text": "What the action adds to the text of its parent",
        "token_ids": "Its generated tokens; none for a reflection",
        "token_texts": "Text that each token completes; joined they are the text",
        "logprobs": "Natural log of each token's probability",
        "confidences": "c_i of each token: its probability over the best five's",
        "top_ids": "Best candidates: five for each token in turn; -1: fewer",
        "top_logprobs": "Their log-probs, in the same order",
        "terminal": "Whether the text ends here",
        "created_at": "When its round was committed",
    },
    """
SELECT job_id, node_id, parent_id, generation, round, depth, action, text, token_ids,
    token_texts, logprobs, confidences, top_ids, top_logprobs, terminal, created_at
FROM public.nodes
""",
)

ROLLOUTS = View(
    "rollouts",
    "Every branch that was generated, from the node it was forked from to where it ended",
    JOB
    | {
        "rollout_id": "0, 1, ... in order of asking",
        "generation": "The attempt that wrote it",
        "round": "The round it belongs to, from 1",
        "start_id": "The node whose text was forked; 0: the prompt",
        "leaf_id": "The node where it ended; start_id if it failed",
        "path": "Nodes from the root to the leaf; to start_id if it failed",
        "seed": "Seed the branch was sampled with",
        "reflect": "Where the reflection phrase went: no, first or at_end",
        "finish": "stop (complete), length (cut off) or failed",
        "confidence": "Mean c_i of the tokens it generated",
        "path_confidence": "Mean c_i of all generated tokens on the path",
        "value": "What was backed up; 0 without an answer",
        "answer": "Key of the answer it reached; null: none",
        "generated_tokens": "Tokens it generated",
        "prompt_tokens": "Tokens of the text it was forked from",
        "cached_tokens": "Of those, served from the prefix cache",
        "seconds": "Seconds it took to generate",
        "error": "Why it failed",
        "created_at": "When its round was committed",
    },
    """
SELECT job_id, rollout_id, generation, round, start_id, path[cardinality(path)], path, seed,
    reflect, finish, confidence, path_confidence, value, answer, generated_tokens, prompt_tokens,
    cached_tokens, seconds, error, created_at
FROM public.rollouts
""",
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
