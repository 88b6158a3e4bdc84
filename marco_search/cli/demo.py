"""The demo: example jobs through producer, queue, worker and search into Postgres."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import UUID, uuid4

from marco_search.cli import reading
from marco_search.cli.demo_queries import Query, demo_queries
from marco_search.cli.query import QueryResult, run_query
from marco_search.cli.render.tree import DrawnNode
from marco_search.cli.session import Session
from marco_search.errors import InputError, MarcoError
from marco_search.jobs import Job
from marco_search.pocket import MODEL_DIR
from marco_search.store.db import Conn
from marco_search.store.queue import jobs as store
from marco_search.store.reads import queries
from marco_search.store.reads.queries import JobStatus

EXAMPLES = MODEL_DIR / "demo.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a run of the demo came to. `seconds` are of the whole command."""

    jobs: int
    answered: int
    correct: int
    checked: int  # jobs whose right answer is known
    nodes: int
    tokens: int  # generated
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One job to look at closely, and the results of the queries."""

    line: JobStatus
    tree: Sequence[DrawnNode]
    winning_path: Sequence[int]
    queries: Sequence[tuple[Query, QueryResult]]


def example_file(path: str | None) -> str:
    """The file of jobs to run. Raises InputError where the examples are not at hand."""
    if path is not None:
        return path
    if not EXAMPLES.exists():
        raise InputError("the examples are part of a checkout and not here: give a FILE of jobs")
    return str(EXAMPLES)


def submit(here: Session, jobs: Sequence[Job]) -> tuple[UUID, list[UUID]]:
    """Submit the jobs as one batch; the ids of the batch and of the jobs."""
    from producer import Producer

    batch_id = uuid4()
    with Producer(settings=here.settings) as producer:
        return batch_id, [handle.id for handle in producer.submit_many(jobs, batch_id=batch_id)]


@contextmanager
def cancelled_on_failure(here: Session, job_ids: Sequence[UUID]) -> Iterator[None]:
    """Cancel the jobs if the block fails or is interrupted: no later worker should run them."""
    try:
        yield
    except BaseException:
        with suppress(MarcoError), here.database.transaction() as conn:
            for job_id in job_ids:
                store.cancel(conn, job_id)
        raise


def figures(lines: Sequence[JobStatus], began: float) -> Figures:
    """The run's figures; `began` is of time.monotonic()."""
    return Figures(
        jobs=len(lines),
        answered=sum(1 for line in lines if line.answer is not None),
        correct=sum(1 for line in lines if line.correct),
        checked=sum(1 for line in lines if line.correct is not None),
        nodes=sum(line.nodes for line in lines),
        tokens=sum(line.generated_tokens for line in lines),
        seconds=round(time.monotonic() - began, 2),
    )


def look(here: Session, batch_id: UUID, lines: Sequence[JobStatus]) -> Shown | None:
    """What the demo shows of the trees; None if no job has an answer."""
    with here.database.transaction() as conn:
        line = _interesting(conn, lines)
        if line is None:
            return None
        tree = reading.drawn_tree(conn, line.job_id)
        path = reading.winning_path(conn, line.job_id)
    with here.database.connect() as conn:
        asked = [(q, run_query(conn, q.sql)) for q in demo_queries(batch_id, line.job_id)]
    return Shown(line=line, tree=tree, winning_path=path, queries=asked)


def _interesting(conn: Conn, lines: Sequence[JobStatus]) -> JobStatus | None:
    """A job that the search had something to decide about: several answers, the best right.

    Better still if the way to that answer leads through a reflection. Of those one in plain
    ASCII, which every terminal can show, and with the smallest tree.
    """
    answered = [line for line in lines if line.answer is not None]
    results = queries.results(conn, [line.job_id for line in answered])
    distinct = {result.job_id: len(result.answers) for result in results}
    reflected = _reflected(conn, [line.job_id for line in answered])

    def rank(line: JobStatus) -> tuple[bool | int, ...]:
        return (
            line.kind != "reasoning",
            distinct[str(line.job_id)] < 2,
            not line.correct,
            line.job_id not in reflected,
            not line.subject.isascii(),
            line.nodes,
        )

    return min(answered, key=rank, default=None)


def _reflected(conn: Conn, job_ids: Sequence[UUID]) -> set[UUID]:
    """Those of the jobs whose winning path has a reflection on it."""
    paths = {job_id: reading.winning_path(conn, job_id) for job_id in job_ids}
    found = conn.execute(
        "SELECT job_id, node_id FROM nodes WHERE job_id = ANY (%s) AND action = 'reflection'",
        [list(job_ids)],
    )
    return {job_id for job_id, node_id in found if node_id in paths[job_id]}


def write_figures(found: Figures, home: Path) -> Path:
    """Write them to MARCO_HOME/bench/demo.json, where benchmarks put theirs."""
    path = home / "bench" / "demo.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(found), indent=2) + "\n")
    return path
