"""Every table of the database, each column described once.

What follows from this description: the columns and types of COPY (`marco_search.store.trail`),
what an audit format hashes (`hashed_columns`), the comments in the database and of its views,
the columns of exports, the rights of roles, and the picture in docs/sql.md. A new column is
added here and by a migration; `make check` compares the two.

The order of a table's columns is the order in which they are hashed: it must not change.
Checks and indexes are in the migrations only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Final

NOW, ZERO, EMPTY = "now()", "0", "''"
IDENTITY = "GENERATED ALWAYS AS IDENTITY"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table."""

    name: str
    kind: str  #: Postgres' internal type name; an array ends in [], a nullable column in ?
    comment: str
    references: str | None = None  #: `table.column` of a foreign key
    _: KW_ONLY
    key: bool = False  #: part of the primary key
    default: str | None = None  #: SQL, or IDENTITY
    leaves: tuple[str, ...] = ()  #: the kinds of leaves of a job's Merkle tree that contain it
    since: int = 1  #: the first audit format that hashes it
    content: bool = False  #: written by people or models: left out of some exports
    quotes: bool = False  #: may quote content

    @property
    def type(self) -> str:
        """The type without the mark of a nullable column."""
        return self.kind.removesuffix("?")

    @property
    def redacted(self) -> bool:
        """Whether `marco redact` replaces it."""
        return self.content or self.quotes


@dataclass(frozen=True, slots=True)
class Table:
    """A table. Rows of an `insert_only` table are never changed, and deleted only by archiving."""

    name: str
    comment: str
    columns: dict[str, Column]
    insert_only: bool


TABLES: Final[dict[str, Table]] = {}


def hashed_columns(table: str, leaf: str, number: int) -> dict[str, str]:
    """Name to type of the columns that format `number` hashes in a leaf of this kind, in order.

    Since format 4 columns that may be redacted come last.
    """
    found = [c for c in TABLES[table].columns.values() if leaf in c.leaves and c.since <= number]
    if number >= 4:
        found.sort(key=lambda c: c.redacted)
    return {c.name: c.type for c in found}


def leaves() -> Iterator[tuple[str, str, list[str]]]:
    """Each kind of leaf of a job's Merkle tree, in order, with its table and key columns: that of
    the job, and that of the row if a job has several.
    """
    for table in TABLES.values():
        keys = [column.name for column in table.columns.values() if column.key]
        for leaf in dict.fromkeys(k for column in table.columns.values() for k in column.leaves):
            yield leaf, table.name, keys


def redacted_columns(table: str, leaf: str | None = None) -> list[str]:
    """The columns of a table that `marco redact` replaces, or those hashed as `leaf`."""
    return [
        c.name
        for c in TABLES[table].columns.values()
        if c.redacted and c.leaves and (leaf is None or leaf in c.leaves)
    ]


def insert_only() -> list[str]:
    """The tables whose rows are never changed or deleted."""
    return [table.name for table in TABLES.values() if table.insert_only]


def _table(name: str, comment: str, *columns: Column, changes: bool = False) -> Table:
    """A table; with `changes` its rows may be updated."""
    table = TABLES[name] = Table(name, comment, {c.name: c for c in columns}, not changes)
    return table


_id = partial(Column, leaves=("request", "outcome"))
_request = partial(Column, leaves=("request",))
_outcome = partial(Column, leaves=("outcome",))

JOBS = _table(
    "jobs",
    "Jobs: the authoritative state of each, and the outbox of its message",
    _id("id", "uuid", "UUID version 7: ids sort by time of submission", key=True),
    # Fixed when it is submitted.
    _request("tenant", "text", "The tenant it belongs to"),
    _request("kind", "text", "Kind of job, such as reasoning"),
    _request("priority", "int2", "0 is high, 3 normal, 6 low"),
    _request("payload", "jsonb", "The request, without the expected answer", content=True),
    _request("expected", "text?", "The answer the caller expects; no search sees it", content=True),
    _request("payload_hash", "text", "SHA-256 of the canonical request, hex", quotes=True),
    _request(
        "idempotency_key",
        "text?",
        "The caller's name for the request, unique per tenant",
        quotes=True,
    ),
    _request("batch_id", "uuid?", "The batch it was submitted in"),
    _request("batch_line", "int4?", "Its line in the batch's input, from 1", since=4),
    _request("custom_id", "text?", "The caller's name for the line", since=4, content=True),
    _request("created_at", "timestamptz", "When submitted", default=NOW),
    # Fixed when it ends.
    _outcome(
        "state",
        "text",
        "queued, running, succeeded, failed, cancelled, expired or dead",
        default="'queued'",
    ),
    _outcome("attempts", "int4", "Times a worker claimed it", default=ZERO),
    _outcome(
        "plan",
        "jsonb?",
        "Configuration, prompt, model and revision, fixed when it begins",
        quotes=True,
    ),
    _outcome("rounds", "int4", "Rounds in the trail", default=ZERO),
    _outcome("rollouts", "int4", "Rollouts in the trail", default=ZERO),
    _outcome("nodes", "int4", "Nodes in the trail", default=ZERO),
    _outcome("generated_tokens", "int8", "Tokens generated", default=ZERO),
    _outcome("prompt_tokens", "int8", "Tokens of all prefixes that were forked", default=ZERO),
    _outcome("cached_tokens", "int8", "Of those, served from the prefix cache", default=ZERO),
    _outcome("seconds", "float8", "Seconds of searching, over all attempts", default=ZERO),
    _outcome("answer", "text?", "The best answer", content=True),
    _outcome("confidence", "float8?", "Its mean confidence, 0 to 1"),
    _outcome("correct", "bool?", "Whether the best answer is the expected one"),
    _outcome("stop_reason", "text?", "Why the search ended"),
    _outcome("last_error", "jsonb?", "type, message and traceback of the last error", quotes=True),
    _outcome("expires_at", "timestamptz?", "Deadline: no round starts after this time"),
    _outcome("started_at", "timestamptz?", "When first claimed"),
    _outcome("finished_at", "timestamptz?", "When it reached a final state"),
    # How the queue handles it.
    Column("turn_at", "timestamptz", "Its place in the tenant's queue, by priority", default=NOW),
    Column("run_after", "timestamptz", "Not claimed before this time (back-off)", default=NOW),
    Column("paused_at", "timestamptz?", "When it was paused; null: not paused"),
    Column("published_at", "timestamptz?", "When it was last published; null: it must be"),
    Column("cancel_requested_at", "timestamptz?", "When it was asked to stop while running"),
    Column("failures", "int4", "Claims that ended with a retryable error", default=ZERO),
    Column("losses", "int4", "Claims that ended with the loss of the worker", default=ZERO),
    Column("lease_owner", "text?", "Worker that holds it; null: none"),
    Column("lease_generation", "int8", "Fencing token: increased by each claim", default=ZERO),
    Column("lease_expires_at", "timestamptz?", "Time after which another worker may claim it"),
    Column("begun_on", "text", "Model and revision of its plan; empty: not started", default=EMPTY),
    Column("parked_at", "timestamptz?", "Since when it waits for a worker with its model"),
    # How its texts can be proved without being revealed.
    Column(
        "salt",
        "uuid?",
        "Random: enters the hashes of its texts; null: destroyed when it was redacted",
        default="gen_random_uuid()",
    ),
    Column("redacted_at", "timestamptz?", "When its texts were redacted; null: not redacted"),
    changes=True,
)
"""The authoritative state of each job."""

TENANTS = _table(
    "tenants",
    "Settings of single tenants; most need no row",
    Column("name", "text", "The tenant; empty: all of them", key=True),
    Column("paused_at", "timestamptz?", "When its jobs were paused; null: not paused"),
    Column("max_queued", "int4?", "Maximum queued jobs; null: that of the settings"),
    changes=True,
)

BATCHES = _table(
    "batches",
    "Files and lists of jobs that were submitted together",
    Column("id", "uuid", "The batch", key=True),
    Column("tenant", "text", "Who submitted it"),
    Column("source", "text?", "Where its lines came from: a path, or an uploaded file's name"),
    Column("file_id", "uuid?", "The uploaded file"),
    Column("metadata", "jsonb", "What the caller attached to it", default="'{}'"),
    Column("created_at", "timestamptz", "When its upload began", default=NOW),
    Column("completed_at", "timestamptz?", "When all its lines had been stored; null: not yet"),
    Column("finished_at", "timestamptz?", "When all its jobs had ended; null: not yet"),
    Column("lines", "int4", "Lines read so far, including empty and refused ones", default=ZERO),
    Column("refused", "int4", "Of those, the refused ones", default=ZERO),
    Column("digest", "text?", "SHA-256, hex, of the search options and the lines read so far"),
    Column("expires_at", "timestamptz?", "Deadline of its jobs without their own"),
    Column("cancelled_at", "timestamptz?", "When it was cancelled before it had ended"),
    changes=True,
)
BATCH_LINES = _table(
    "batch_lines",
    "Lines of batches that created no job: refused, or with a known idempotency key",
    Column("batch_id", "uuid", "The batch", "batches.id", key=True),
    Column("line", "int4", "The line, from 1", key=True),
    Column("custom_id", "text?", "The caller's name for it", content=True),
    Column("known_id", "uuid?", "The existing job of its idempotency key"),
    Column("field", "text?", "The field that is wrong"),
    Column("reason", "text?", "Why it was refused; null: not refused", content=True),
    changes=True,
)

API_KEYS = _table(
    "api_keys",
    "Keys of the HTTP API; a key itself is stored nowhere",
    Column("id", "text", "Its public part, shown in lists", key=True),
    Column("hash", "bytea", "SHA-256 of the key"),
    Column("tenant", "text", "The tenant whose jobs it submits and sees"),
    Column("name", "text", "What its maker called it", default=EMPTY),
    Column("rights", "text[]", "What it may do: submit, read, cancel"),
    Column("per_minute", "int4?", "Maximum requests per minute; null: no limit"),
    Column("created_at", "timestamptz", "When it was made", default=NOW),
    Column("expires_at", "timestamptz?", "When it expires; null: never"),
    Column("revoked_at", "timestamptz?", "When it was revoked; null: not revoked"),
    Column("due_at", "timestamptz", "When its rate limit is reset", default=NOW),
    changes=True,
)

WEBHOOKS = _table(
    "webhooks",
    "URLs that are notified when jobs and batches end. Contains secrets: hidden from auditors",
    Column("id", "uuid", "The webhook", key=True, default="gen_random_uuid()"),
    Column("tenant", "text", "The tenant whose jobs and batches it is notified of"),
    Column("url", "text", "Where deliveries are posted"),
    Column("events", "text[]", "job.finished, batch.finished"),
    Column("secret", "text", "whsec_ and the key that deliveries are signed with, in base64"),
    Column("old_secret", "text?", "The previous secret, also used for signing until old_until"),
    Column("old_until", "timestamptz?", "When old_secret expires"),
    Column("created_at", "timestamptz", "When added", default=NOW),
    changes=True,
)
WEBHOOK_DELIVERIES = _table(
    "webhook_deliveries",
    "Deliveries to webhooks and their outcome; bodies are made when they are sent",
    Column("id", "uuid", "The header webhook-id", key=True, default="gen_random_uuid()"),
    Column("webhook_id", "uuid", "The webhook", "webhooks.id"),
    Column("event", "text", "job.finished, batch.finished or test"),
    Column("job_id", "uuid?", "The job that ended"),
    Column("batch_id", "uuid?", "The batch that ended"),
    Column("created_at", "timestamptz", "When it ended", default=NOW),
    Column("state", "text", "pending, delivered or failed for good", default="'pending'"),
    Column("attempts", "int4", "Times it was sent", default=ZERO),
    Column("next_at", "timestamptz", "Not sent before this time", default=NOW),
    Column("tried_at", "timestamptz?", "Time of the last attempt"),
    Column("error", "text?", "Why the last attempt failed"),
    changes=True,
)
FILES = _table(
    "files",
    "Files that clients of the HTTP API uploaded",
    Column("id", "uuid", "The file", key=True),
    Column("tenant", "text", "The tenant it belongs to"),
    Column("name", "text", "What its uploader called it"),
    Column("bytes", "int8", "Its size"),
    Column("created_at", "timestamptz", "When it was uploaded", default=NOW),
    Column("expires_at", "timestamptz?", "When it is deleted; null: never"),
    changes=True,
)
FILE_PARTS = _table(
    "file_parts",
    "Contents of those files, a MiB per row",
    Column("file_id", "uuid", "The file", "files.id", key=True),
    Column("number", "int4", "From 0", key=True),
    Column("data", "bytea", "The bytes", content=True),
    changes=True,
)

_attempt = partial(Column, leaves=("attempt",))
ATTEMPTS = _table(
    "attempts",
    "Claims of jobs by workers, with all it takes to replay them. Insert only",
    _attempt("job_id", "uuid", "The job", "jobs.id", key=True),
    _attempt("generation", "int8", "Lease generation of the claim", key=True),
    _attempt("worker", "text", "Name of the worker process"),
    _attempt("host", "text", "Machine it runs on"),
    _attempt("pid", "int4", "Its process id there"),
    _attempt("runtime", "text?", "Name of the engine; null here and below: unavailable"),
    _attempt("runtime_version", "text?", "Version of the engine"),
    _attempt("model", "text?", "Name of the model"),
    _attempt("revision", "text?", "Revision of its weights"),
    _attempt("config", "jsonb?", "Every setting of the search"),
    _attempt("prompt", "text?", "The prompt, as the model was given it", content=True),
    _attempt("seed", "int4?", "Seed of all randomness"),
    _attempt("started_at", "timestamptz", "When claimed", default=NOW),
    _attempt(
        "training",
        "jsonb?",
        "What the model was fine-tuned from and on, according to its folder; null: unknown",
        since=4,
    ),
)

_event = partial(Column, leaves=("event",))
AUDIT_LOG = _table(
    "audit_log",
    "What happened to each job, in order. Insert only",
    _event("job_id", "uuid", "The job", "jobs.id", key=True),
    _event("id", "int8", "In order of writing", default=IDENTITY, key=True),
    _event("generation", "int8?", "Lease generation of the worker; null: not by a worker"),
    _event("event", "text", "submitted, published, claimed, round, retried, ... or a final state"),
    _event("detail", "jsonb", "Details of the event", default="'{}'", quotes=True),
    _event("at", "timestamptz", "When the transaction that wrote it began", default=NOW),
)

_GENERATION = (
    "generation",
    "int8",
    "Lease generation of the attempt that wrote it",
    "attempts.generation",
)
_CREATED_AT = ("created_at", "timestamptz", "When the row was written")

_node = partial(Column, leaves=("node",))
NODES = _table(
    "nodes",
    "Nodes of the search trees, with every generated token. Insert only",
    _node("job_id", "uuid", "The job", key=True),
    _node("node_id", "int4", "1, 2, ... in order of growth; the root is not stored", key=True),
    _node("parent_id", "int4", "The node above; 0 is the root, the prompt"),
    _node("round", "int4", "The round that added it, from 1"),
    _node("depth", "int4", "Number of edges from the root"),
    _node(*_GENERATION),
    _node("terminal", "bool", "Whether the text ends here"),
    _node(*_CREATED_AT, default=NOW),
    _node("token_ids", "int4[]", "Its generated tokens; none for a reflection", content=True),
    _node("logprobs", "float4[]", "Natural log of each token's probability"),
    _node("confidences", "float8[]", "c_i of each token: its probability over the best five's"),
    _node("top_ids", "int4[]", "Its best candidates, five per token; -1: none", content=True),
    _node("top_logprobs", "float4[]", "Their log-probs, in the same order"),
    _node("token_texts", "text[]", "The part of the text that each token completes", content=True),
    _node("action", "text", "reflection, answer, or how the thought is cut: span, step, ..."),
    _node("text", "text", "What the action adds to the text of its parent", content=True),
)
"""Nodes below the root. The root is the prompt and has no row."""

_rollout = partial(Column, leaves=("rollout",))
ROLLOUTS = _table(
    "rollouts",
    "Rollouts: visit counts and values follow from them. Insert only",
    _rollout("job_id", "uuid", "The job", key=True),
    _rollout("rollout_id", "int4", "0, 1, ... in order of request", key=True),
    _rollout("round", "int4", "The round it belongs to, from 1"),
    _rollout("start_id", "int4", "The node whose text was forked; 0: the prompt"),
    _rollout("seed", "int4", "Seed the branch was sampled with"),
    _rollout(*_GENERATION),
    _rollout("generated_tokens", "int4", "Tokens it generated, and the one in `forced`"),
    _rollout("prompt_tokens", "int4", "Tokens that its requests began with, all of them given"),
    _rollout("cached_tokens", "int4", "Of those, served from the prefix cache"),
    _rollout("confidence", "float8", "Mean c_i of its generated tokens"),
    _rollout("path_confidence", "float8", "Mean c_i of the path's tokens since a reflection"),
    _rollout("value", "float8", "The reward that was backed up; 0 without an answer"),
    _rollout("seconds", "float8", "Seconds it took to generate"),
    _rollout(*_CREATED_AT, default=NOW),
    _rollout("path", "int4[]", "Nodes from the root to the leaf; to start_id if it failed"),
    _rollout("reflect", "text", "Where the reflection phrase went: no, first or at_end"),
    _rollout("finish", "text", "stop (complete), length (cut off) or failed"),
    _rollout("answer", "text?", "Key of the answer it reached; null: none", content=True),
    _rollout("error", "text?", "Why it failed, or why it has no scores", content=True),
    _rollout(
        "scores",
        "float8[]?",
        "Scores of a reward model for each step, or of the verifier for its answer; null: neither",
        since=3,
    ),
    _rollout(
        "forced",
        "int4?",
        "Token that a fork was made to begin with, a candidate passed over before; null: no fork",
        since=3,
        content=True,
    ),
)
"""One branch each, from the node it was forked from to where it ended."""

_answer = partial(Column, leaves=("answer",))
ANSWERS = _table(
    "answers",
    "The best distinct answers of each finished job, ranked. Insert only",
    _answer("job_id", "uuid", "The job", key=True),
    _answer("rank", "int4", "1 is the best", key=True),
    _answer(*_GENERATION),
    _answer("confidence", "float8", "Mean of what its rollouts' votes weigh, 0 to 1"),
    _answer("votes", "int4", "Rollouts that reached it"),
    _answer("share", "float8", "Its share of the total weight of votes"),
    _answer(*_CREATED_AT, default=NOW),
    _answer("rollout_ids", "int4[]", "The rollouts that reached it"),
    _answer("key", "text", "The form that votes are counted on", content=True),
    _answer("text", "text", "The answer as a reader should see it", content=True),
    _answer("output", "text", "Output part of its most confident rollout", content=True),
    _answer("thought", "text?", "Thought of the same rollout", content=True),
)

VOCABULARY = _table(
    "vocabulary",
    "Texts of candidates, for readers; not part of the proofs. Insert only",
    Column("model", "text", "Name of the model", key=True),
    Column("revision", "text", "Revision of its weights", key=True),
    Column("token_id", "int4", "The token's number", key=True),
    Column("text", "text", "Its text alone; U+FFFD: part of a character", content=True),
)
"""Belongs to no tenant: every auditor may read it. It tells that some search of the model came
across a token as a candidate, not whose and not with what before it.
"""

CHAIN = _table(
    "chain",
    "Hash chain: a link whenever a job ends. Insert only",
    Column("seq", "int8", "0, 1, ... without gaps", key=True),
    Column("kind", "text", "first, job (one that ended), redaction or archive"),
    Column("job_id", "uuid?", "The job that ended or was redacted", "jobs.id"),
    Column("root", "bytea", "Merkle root over the job's rows; of an archive, the hash of its list"),
    Column("previous", "bytea", "Head of the previous link"),
    Column("head", "bytea", "SHA-256 over all other columns: what `marco anchor` signs"),
    Column("at", "timestamptz", "When it was chained"),
    Column("format", "int2", "Audit format: the rules of the link and its proof"),
)

CHAIN_LOCK = _table(
    "chain_lock",
    "Always empty. Locked until the commit by each session that appends to the chain",
    Column("id", "int4", "Never written", key=True),
    changes=True,
)

PROOFS = _table(
    "proofs",
    "Hash of each row of a job when it ended, to name a row that was changed. Insert only",
    Column("seq", "int8", "The link with their root", "chain.seq", key=True),
    Column("attempts", "int8[]", "Generations of the attempts covered"),
    Column("events", "int8[]", "Ids of the rows of audit_log covered"),
    Column("nodes", "int4[]", "Ids of the nodes covered"),
    Column("rollouts", "int4[]", "Ids of the rollouts covered"),
    Column("answers", "int4[]", "Ranks of the answers covered"),
    Column("hashes", "bytea", "SHA-256 of request, outcome and every row covered, in this order"),
)

REDACTIONS = _table(
    "redactions",
    "Redacted jobs, with commitments that still prove the rest. Insert only",
    Column("job_id", "uuid", "The job", "jobs.id", key=True),
    Column("by", "text", "The login that redacted it", default="session_user"),
    Column("at", "timestamptz", "When", default=NOW),
    Column(
        "commitments",
        "bytea",
        "Salted SHA-256 of the texts of each row that its proof covers, in the proof's order",
    ),
    Column(
        "transaction",
        "int8",
        "The transaction that may replace texts",
        default="(pg_current_xact_id()::text)::bigint",
    ),
)
"""The right to insert here is the right to redact: triggers check for this row."""

ARCHIVES = _table(
    "archives",
    "Months whose trees are in an archive, with its manifest. Insert only",
    Column("seq", "int8", "The link with the list's SHA-256", "chain.seq", key=True),
    Column("first", "uuid", "Lowest id a job of the month can have"),
    Column("before", "uuid", "Lowest id of the next month"),
    Column("files", "text", "The manifest.json, verbatim"),
)

DATASETS = _table(
    "datasets",
    "Data sets for training that were made from stored trees. Insert only",
    Column("id", "uuid", "The data set", key=True),
    Column("tenant", "text?", "Tenant whose jobs it was made from; null: all tenants"),
    Column("name", "text", "What its maker called it"),
    Column("kind", "text", "sft (samples) or preference (pairs)"),
    Column("manifest", "jsonb", "Its manifest.json: rules, counts, hashes of files and inputs"),
    Column("manifest_sha256", "text", "SHA-256, hex, of the canonical manifest without this field"),
    Column("samples", "int8", "Samples or pairs in it"),
    Column("created_at", "timestamptz", "When it was made", default=NOW),
)
DATASET_SAMPLES = _table(
    "dataset_samples",
    "The paths of stored trees that data sets consist of. Insert only",
    Column("dataset_id", "uuid", "The data set", "datasets.id", key=True),
    Column("sample_id", "text", "The id of its line; salted if redacted", key=True),
    Column("role", "text", "sample; in pairs: chosen or rejected", key=True),
    Column("job_id", "uuid", "The job", "jobs.id"),
    Column("rollout_id", "int4", "The rollout whose text it is"),
    Column("node_ids", "int4[]", "Nodes whose texts, joined, are that text"),
)
"""The id is a hash of texts, so redaction replaces it."""

AUDITORS = _table(
    "auditors",
    "Which auditor sees which tenant's jobs through the views",
    Column("role_name", "text", "The role that the auditor logs in as", key=True),
    Column("tenant", "text", "A tenant whose jobs it may see", key=True),
    changes=True,
)
