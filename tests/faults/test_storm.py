"""The fault suite's short form: each fault once, and nothing is lost, doubled or leaked."""

from __future__ import annotations

import json

import pytest

from tests.faults import run, suite


@pytest.mark.timeout(600)
def test_every_job_ends_once_whatever_dies() -> None:
    figures = suite.run(suite.SHORT, seed=7, say=print)
    shown = json.dumps(figures, indent=2)
    assert run.wrong(figures) == [], shown
    assert figures["jobs"] >= suite.SHORT.jobs, shown
    assert figures["trees_compared"] > 0, shown
    assert figures["window_lost"] == 0, shown
    assert figures["poison"] == {
        "state": "dead", "error": "WorkerLost", "workers_killed": 2, "others": ["succeeded"] * 3,
    }, shown  # fmt: skip
