"""What a proof of format 1 covers: the canonical columns of each kind of row, in order."""

from __future__ import annotations

from marco_search.audit.proofs import Kind

REQUEST = {
    "id": "uuid",
    "tenant": "text",
    "kind": "text",
    "priority": "int2",
    "payload": "jsonb",
    "expected": "text",
    "payload_hash": "text",
    "idempotency_key": "text",
    "batch_id": "uuid",
    "created_at": "timestamptz",
}
"""The part of a row of jobs that is fixed when it is submitted."""

OUTCOME = {
    "id": "uuid",
    "state": "text",
    "attempts": "int4",
    "plan": "jsonb",
    "rounds": "int4",
    "rollouts": "int4",
    "nodes": "int4",
    "generated_tokens": "int8",
    "prompt_tokens": "int8",
    "cached_tokens": "int8",
    "seconds": "float8",
    "answer": "text",
    "confidence": "float8",
    "correct": "bool",
    "stop_reason": "text",
    "last_error": "jsonb",
    "expires_at": "timestamptz",
    "started_at": "timestamptz",
    "finished_at": "timestamptz",
}
"""The part that is fixed when the job ends."""

ATTEMPT = {
    "job_id": "uuid",
    "generation": "int8",
    "worker": "text",
    "host": "text",
    "pid": "int4",
    "runtime": "text",
    "runtime_version": "text",
    "model": "text",
    "revision": "text",
    "config": "jsonb",
    "prompt": "text",
    "seed": "int4",
    "started_at": "timestamptz",
}

EVENT = {
    "job_id": "uuid",
    "id": "int8",
    "generation": "int8",
    "event": "text",
    "detail": "jsonb",
    "at": "timestamptz",
}

# What has a fixed size stands first, so that one struct reads it (marco_search.audit.v1.rows).
NODE = {
    "job_id": "uuid",
    "node_id": "int4",
    "parent_id": "int4",
    "round": "int4",
    "depth": "int4",
    "generation": "int8",
    "terminal": "bool",
    "created_at": "timestamptz",
    "token_ids": "int4[]",
    "logprobs": "float4[]",
    "confidences": "float8[]",
    "top_ids": "int4[]",
    "top_logprobs": "float4[]",
    "token_texts": "text[]",
    "action": "text",
    "text": "text",
}

ROLLOUT = {
    "job_id": "uuid",
    "rollout_id": "int4",
    "round": "int4",
    "start_id": "int4",
    "seed": "int4",
    "generation": "int8",
    "generated_tokens": "int4",
    "prompt_tokens": "int4",
    "cached_tokens": "int4",
    "confidence": "float8",
    "path_confidence": "float8",
    "value": "float8",
    "seconds": "float8",
    "created_at": "timestamptz",
    "path": "int4[]",
    "reflect": "text",
    "finish": "text",
    "answer": "text",
    "error": "text",
}

ANSWER = {
    "job_id": "uuid",
    "rank": "int4",
    "generation": "int8",
    "confidence": "float8",
    "votes": "int4",
    "share": "float8",
    "created_at": "timestamptz",
    "rollout_ids": "int4[]",
    "key": "text",
    "text": "text",
    "output": "text",
    "thought": "text",
}

KINDS = {
    "request": Kind("jobs", "id", None, REQUEST),
    "outcome": Kind("jobs", "id", None, OUTCOME),
    "attempt": Kind("attempts", "job_id", "generation", ATTEMPT),
    "event": Kind("audit_log", "job_id", "id", EVENT),
    "node": Kind("nodes", "job_id", "node_id", NODE),
    "rollout": Kind("rollouts", "job_id", "rollout_id", ROLLOUT),
    "answer": Kind("answers", "job_id", "rank", ANSWER),
}
"""The leaves of the Merkle tree stand in this order, then by key."""
