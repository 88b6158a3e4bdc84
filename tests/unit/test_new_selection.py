"""The worked example of CONTRIBUTING.md: a new selection rule is an entry in RULES."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from marco_search.engine import Journal, make_plan, run_search
from marco_search.jobs import SearchOptions
from marco_search.kinds import ReasoningJob
from marco_search.replay import replay
from marco_search.search.config import Selection
from marco_search.search.selection import RULES, Frontier
from tests.toy import ToyRuntime


def fewest_visits(frontier: Frontier, parent: int, children: Sequence[int]) -> list[float]:
    """Breadth first: the child with the fewest branches."""
    return [-float(frontier.count(child)) for child in children]


def test_the_search_and_its_replay_follow_it(monkeypatch: pytest.MonkeyPatch) -> None:
    options = SearchOptions(strategy="step", rollouts=24, early_stop=False)
    job = ReasoningJob(question="1 + 1?", options=options)
    plan = make_plan(job, ToyRuntime())
    usual = run_search(job, plan, ToyRuntime(), Journal()).search.tree
    monkeypatch.setitem(RULES, Selection.UCT, fewest_visits)
    tree = run_search(job, plan, ToyRuntime(), Journal()).search.tree
    assert [r.start_id for r in tree.rollouts] != [r.start_id for r in usual.rollouts]
    assert replay(job, plan, tree.nodes[1:], tree.rollouts, ToyRuntime()).same_bits
    monkeypatch.undo()
    assert not replay(job, plan, tree.nodes[1:], tree.rollouts, ToyRuntime()).same_bits
