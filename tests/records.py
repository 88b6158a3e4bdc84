"""Records of jobs for tests of drawings and console: toy searches, without a database."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from marco_search.audit.findings import JobReport
from marco_search.console.reader import Models, Reader, Workers
from marco_search.errors import JobNotFound
from marco_search.jobs import Answer
from marco_search.search.actions import Action
from marco_search.search.branches import TOP_K
from marco_search.search.config import SearchConfig
from marco_search.search.mcts import Search
from marco_search.store.queue.batches import Batch
from marco_search.store.reads.job_record import (
    AttemptRow,
    EventRow,
    JobRecord,
    NodeTokens,
    TreeRow,
)
from marco_search.store.reads.lineage import DataSet
from marco_search.store.reads.queries import JobFilter, JobPage, JobStatus, Totals
from tests.toy import PROMPT, ToyRuntime, answer_of

HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>\u2028{{7*7}}"
)
AT = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)


def job_id(number: int) -> UUID:
    """Ids in order of submission."""
    return UUID(f"01a2{number:04x}-0000-7000-8000-{number:012x}")


def search_of(rollouts: int = 24, seed: int = 1) -> Search:
    """A finished toy search."""
    config = SearchConfig(
        strategy="test", action=Action.STEP, rollouts=rollouts, seed=seed, early_stop=False,
        parallel=8, max_new_tokens=200,
    )  # fmt: skip
    search, runtime = Search(config, PROMPT, answer_of), ToyRuntime()
    while expansions := search.ask():
        search.tell(runtime.branch(expansions))
    return search


def record_of(
    search: Search,
    number: int = 1,
    *,
    rounds: int | None = None,
    subject: str = "What is 1 + 1?",
    payload: dict[str, Any] | None = None,
    **job: Any,
) -> JobRecord:
    """The record of the search's job as it was after `rounds` (None: at its end)."""
    tree = search.tree
    last = max(r.round for r in tree.rollouts)
    until = last if rounds is None else rounds
    done = rounds is None
    rollouts = [r for r in tree.rollouts if r.round <= until]
    answers = _answers(search) if done else ()
    reaching = ([r for r in rollouts if r.rollout_id in a.rollout_ids] for a in answers)
    best = (max(found, key=lambda r: (r.path_confidence, -r.rollout_id)) for found in reaching)
    nodes = _nodes(search, until) if until else ()
    return JobRecord(
        job=JobStatus(
            **{
                "job_id": job_id(number), "tenant": "default", "batch_id": None,
                "kind": "reasoning", "state": "succeeded" if done else "running",
                "subject": subject, "strategy": "step",
                "created_at": AT + timedelta(minutes=number), "started_at": AT,
                "finished_at": AT + timedelta(hours=1) if done else None, "attempts": 1,
                "rounds": until, "rollouts": len(rollouts),
                "rollout_budget": len(tree.rollouts), "nodes": max(0, len(nodes) - 1),
                "generated_tokens": sum(r.generated_tokens for r in rollouts), "seconds": 1.5,
                "answer": answers[0].text if answers else None,
                "confidence": answers[0].confidence if answers else None,
                "expected": "2", "correct": None, "stop_reason": "rollouts" if done else None,
                "model": "toy", "revision": "0" * 64, "seed": 1, "error_type": None,
                "error": None, "priority": 3, "run_after": AT, "cancel_requested_at": None,
                "lease_owner": None,
            }
            | job
        ),
        payload=payload or {},
        answers=answers,
        best_rollouts=tuple(r.rollout_id for r in best),
        nodes=nodes,
        rollouts=tuple(rollouts),
        attempts=(
            AttemptRow(
                generation=1, worker="test", host="here", pid=7, runtime="toy",
                runtime_version="0", model="toy", revision="0" * 64, seed=1,
                config={"rollouts": 24}, prompt=PROMPT, started_at=AT,
            ),
        ),
        events=(
            EventRow(event_id=1, generation=None, event="submitted", detail={}, at=AT),
            EventRow(event_id=2, generation=1, event="round", detail={"round": 1}, at=AT),
        ),
    )  # fmt: skip


def _nodes(search: Search, until: int) -> tuple[TreeRow, ...]:
    backed_up: dict[int, list[float]] = {}
    for rollout in search.tree.rollouts:
        if rollout.round <= until and rollout.finish != "failed":
            for node_id in rollout.path:
                backed_up.setdefault(node_id, []).append(rollout.value)
    rows = []
    for node in search.tree.nodes:
        if node.round > until:
            continue
        values = backed_up.get(node.node_id, [])
        rows.append(
            TreeRow(
                node_id=node.node_id, parent_id=node.parent_id, depth=node.depth,
                round=node.round, action=str(node.action), text=node.text,
                tokens=len(node.tokens),
                confidence=sum(node.confidences) / len(node.confidences)
                if node.confidences else None,
                terminal=node.terminal, visits=len(values),
                value=sum(values) / len(values) if values else None,
            )
        )  # fmt: skip
    return tuple(rows)


def _answers(search: Search) -> tuple[Answer, ...]:
    return tuple(
        Answer(
            rank=i, text=found.key, normalised=found.key, confidence=found.confidence,
            votes=found.votes, share=found.share, output=found.key, thought="thinking",
            rollout_ids=found.rollout_ids,
        )
        for i, found in enumerate(search.ranked(), start=1)
    )  # fmt: skip


def times(record: JobRecord, copies: int) -> JobRecord:
    """The record with its tree so many times over, side by side under one root."""
    size = max(node.node_id for node in record.nodes)
    last = max(rollout.rollout_id for rollout in record.rollouts) + 1
    nodes, rollouts = [record.nodes[0]], []
    for copy in range(copies):
        by = copy * size
        for node in record.nodes[1:]:
            assert node.parent_id is not None
            parent = node.parent_id + by if node.parent_id else 0
            nodes.append(replace(node, node_id=node.node_id + by, parent_id=parent))
        for rollout in record.rollouts:
            path = tuple(i + by if i else 0 for i in rollout.path)
            number = rollout.rollout_id + copy * last
            rollouts.append(replace(rollout, rollout_id=number, path=path))
    return replace(record, nodes=tuple(nodes), rollouts=tuple(rollouts))


def tokens_of(search: Search) -> dict[int, NodeTokens]:
    """The tokens of all nodes that have any."""
    return {
        node.node_id: NodeTokens(
            node_id=node.node_id,
            token_ids=[t.id for t in node.tokens],
            token_texts=[t.text for t in node.tokens],
            logprobs=[t.logprob for t in node.tokens],
            confidences=list(node.confidences),
            top_ids=[i for t in node.tokens for i, _ in t.top],
            top_logprobs=[p for t in node.tokens for _, p in t.top],
            top_texts=[None for t in node.tokens for _ in t.top],
        )
        for node in search.tree.nodes
        if node.tokens
    }


class FakeReader(Reader):
    """Records in memory, counting what is read."""

    def __init__(self) -> None:
        self.records: OrderedDict[UUID, JobRecord] = OrderedDict()
        self.stored: dict[UUID, dict[int, NodeTokens]] = {}
        self.reports: dict[UUID, JobReport] = {}
        self.reads = 0

    def put(self, record: JobRecord, tokens: dict[int, NodeTokens]) -> UUID:
        self.records[record.job.job_id] = record
        self.stored[record.job.job_id] = tokens
        return record.job.job_id

    def jobs(self, wanted: JobFilter) -> JobPage:
        self.reads += 1
        lines = [r.job for r in reversed(self.records.values())]
        if wanted.state:
            lines = [line for line in lines if line.state == wanted.state]
        counts = dict(Counter(str(r.job.state) for r in self.records.values()))
        return JobPage(jobs=tuple(lines), newer=False, older=False, counts=counts)

    def all_jobs(self, wanted: JobFilter, limit: int) -> Iterator[JobStatus]:
        return iter(self.jobs(wanted).jobs[:limit])

    def matching(self, word: str) -> list[UUID]:
        found = [i for i in self.records if str(i).endswith(word)]
        if not found:
            raise JobNotFound(f"no job {word}")
        return found[:2]

    def workers(self) -> Workers:
        return Workers(None, {}, [], [])

    def models(self, old: str = "", new: str = "") -> Models:
        return Models(revisions=[])

    def data_sets(self, **_: Any) -> list[DataSet]:
        return []

    def answers(self) -> bool:
        return True

    def batches(self) -> list[tuple[Batch, Totals]]:
        self.reads += 1
        return []

    def tenants(self) -> list[tuple[None, Totals]]:
        self.reads += 1
        states = {"running": 1, "succeeded": 2}
        return [(None, Totals(name="default", states=states, jobs=3, first=AT, last=AT))]

    def record(self, job_id: UUID) -> JobRecord:
        self.reads += 1
        if job_id not in self.records:
            raise JobNotFound(f"no job {job_id}")
        return self.records[job_id]

    def verified(self, job_id: UUID) -> JobReport | None:
        return self.reports.get(job_id)

    def tokens(self, job_id: UUID, node_id: int | None = None) -> dict[int, NodeTokens]:
        rows = self.stored.get(job_id, {})
        assert all(len(row.top_ids) == TOP_K * len(row.token_ids) for row in rows.values())
        return rows if node_id is None else {i: row for i, row in rows.items() if i == node_id}
