"""Views over the trail, and the triggers that keep it insert only."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"

TABLES = ("attempts", "nodes", "rollouts", "answers", "audit_log")

REFUSE_CHANGE = """
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% of % refused: the audit trail is insert only', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation';
END
$$
"""

NODE_STATS = """
CREATE VIEW node_stats WITH (security_invoker = true) AS
SELECT r.job_id, p.node_id, count(*) AS visits, avg(r.value) AS value
FROM rollouts AS r CROSS JOIN LATERAL unnest(r.path) AS p (node_id)
WHERE r.finish <> 'failed'
GROUP BY r.job_id, p.node_id
"""

TREE = """
CREATE VIEW tree WITH (security_invoker = true) AS
SELECT n.job_id, n.node_id, n.parent_id, n.depth, n.round, n.action, n.text,
    cardinality(n.token_ids) AS tokens,
    (SELECT avg(c) FROM unnest(n.confidences) AS c) AS confidence,
    n.terminal, coalesce(s.visits, 0) AS visits, s.value,
    (WITH RECURSIVE up (node_id, parent_id, depth) AS (
        SELECT n.node_id, n.parent_id, n.depth
        UNION ALL
        SELECT a.node_id, a.parent_id, a.depth
        FROM up JOIN nodes AS a ON a.job_id = n.job_id AND a.node_id = up.parent_id
    ) SELECT 0 || array_agg(up.node_id ORDER BY up.depth) FROM up) AS path
FROM nodes AS n LEFT JOIN node_stats AS s ON s.job_id = n.job_id AND s.node_id = n.node_id
UNION ALL
SELECT j.id, 0, NULL, 0, 0, 'root', '', 0, NULL, false, coalesce(s.visits, 0), s.value, ARRAY[0]
FROM jobs AS j LEFT JOIN node_stats AS s ON s.job_id = j.id AND s.node_id = 0
WHERE j.rounds > 0
"""

JOB_OVERVIEW = """
CREATE VIEW job_overview WITH (security_invoker = true) AS
SELECT j.id AS job_id, j.tenant, j.batch_id, j.kind, j.state,
    coalesce(j.payload ->> 'question', j.payload ->> 'text', j.payload ->> 'prompt') AS subject,
    j.payload #>> '{options,strategy}' AS strategy,
    j.answer, j.confidence, j.expected, j.correct, j.stop_reason,
    j.rollouts, j.nodes, j.generated_tokens, j.attempts, j.seconds,
    extract(epoch FROM j.started_at - j.created_at)::double precision AS seconds_queued,
    j.plan ->> 'model' AS model, j.last_error ->> 'message' AS error,
    j.created_at, j.finished_at
FROM jobs AS j
"""

COMMENTS = {
    "node_stats": {
        "": "Visit count and value of every visited node, derived from the rollouts",
        "job_id": "The job",
        "node_id": "The node; 0 is the root, the prompt",
        "visits": "Rollouts that pass through it (failed ones do not count)",
        "value": "Q: mean of the values they backed up",
    },
    "tree": {
        "": "Search trees: every node with its visit count, value and path",
        "job_id": "The job",
        "node_id": "The node; 0 is the root, the prompt",
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
    "job_overview": {
        "": "One line for each job: what was asked, what came out, what it cost",
        "job_id": "The job",
        "tenant": "Who it belongs to",
        "batch_id": "The batch it was submitted in",
        "kind": "reasoning, translation or open_ended",
        "state": "queued, running, succeeded, failed, cancelled or dead",
        "subject": "The question, text or prompt",
        "strategy": "How it is searched",
        "answer": "The best answer",
        "confidence": "Its mean confidence, 0 to 1",
        "expected": "The answer the caller expects",
        "correct": "Whether the best answer is the expected one",
        "stop_reason": "Why the search ended",
        "rollouts": "Rollouts in the trail",
        "nodes": "Nodes in the trail",
        "generated_tokens": "Tokens generated",
        "attempts": "Times a worker claimed it",
        "seconds": "Seconds of searching, over all attempts",
        "seconds_queued": "Seconds from submission to the first claim",
        "model": "Model it is searched with",
        "error": "The last error's message",
        "created_at": "When submitted",
        "finished_at": "When it reached a final state",
    },
}


def upgrade() -> None:
    """Create the views and the triggers."""
    for view in (NODE_STATS, TREE, JOB_OVERVIEW):
        op.execute(view)
    for view, comments in COMMENTS.items():
        for column, comment in comments.items():
            thing = f"COLUMN {view}.{column}" if column else f"VIEW {view}"
            quoted = comment.replace("'", "''")
            op.execute(f"COMMENT ON {thing} IS '{quoted}'")
    op.execute(REFUSE_CHANGE)
    for table in TABLES:
        op.execute(
            f"CREATE TRIGGER insert_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        )


def downgrade() -> None:
    """Drop them."""
    for table in TABLES:
        op.execute(f"DROP TRIGGER insert_only ON {table}")
    op.execute("DROP FUNCTION refuse_change()")
    for view in ("job_overview", "tree", "node_stats"):
        op.execute(f"DROP VIEW {view}")
