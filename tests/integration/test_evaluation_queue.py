"""An evaluation through the queue finds what one in process finds, and is resumable."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from marco_search.evaluation.data_sets import from_row
from marco_search.evaluation.run import Progress, Recipe, run, run_queued
from marco_search.evaluation.traces import Trace, read
from marco_search.jobs import SearchOptions
from producer import Producer
from tests.integration.test_worker import worker
from tests.toy import ToyRuntime

PROBLEMS = [from_row({"question": f"Problem {i}?", "answer": "987654"}, "row") for i in range(5)]
RECIPE = Recipe(options=SearchOptions(strategy="step", rollouts=6), keep_tokens=True)


def plain(traces: list[Trace]) -> list[dict[str, Any]]:
    return [asdict(t) | {"seconds": 0, "run": ""} for t in traces]


def test_the_queue_finds_what_a_local_run_finds(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    file, reports = tmp_path / "queue.jsonl", list[Progress]()
    with Producer(database_url, redis_url) as producer, worker(database_url, redis_url):
        run_queued(PROBLEMS[:2], RECIPE, file, producer)
        found = run_queued(PROBLEMS, RECIPE, file, producer, on_progress=reports.append)
        bare = tmp_path / "bare.jsonl"
        run_queued(PROBLEMS, replace(RECIPE, keep_tokens=False), bare, producer)
        assert plain(run_queued(PROBLEMS, RECIPE, bare, producer)) == plain(found)
        with producer._database.transaction() as conn:
            payloads = conn.execute("SELECT payload::text, expected FROM jobs").fetchall()
    assert (reports[0].done, reports[-1].done) == (2, 5) and len(read(file)) == 5
    assert plain(found) == plain(run(PROBLEMS, RECIPE, ToyRuntime(), tmp_path / "local.jsonl"))
    # What was searched without keeping trees is read back, not searched again.
    # No label is stored anywhere.
    assert len(payloads) == 5
    assert not any("987654" in payload or expected for payload, expected in payloads)
