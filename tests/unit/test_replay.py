"""A stored search generated again: the same, or where it first differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from marco_search.engine import FinishedSearch, Journal, SearchPlan, make_plan, run_search
from marco_search.errors import ModelRefused, SearchError
from marco_search.jobs import SearchOptions
from marco_search.kinds import ReasoningJob
from marco_search.replay import Replayed, replay
from marco_search.runtime import open_runtime
from marco_search.runtime.base import Runtime
from marco_search.search.branches import Branch, Expansion, Segment
from marco_search.search.budgets import StopReason
from marco_search.search.tree import ROOT, Round
from marco_search.settings import Settings
from tests.toy import ToyRuntime


class StopAfter(Journal):
    """Cancels the search after some rounds."""

    def __init__(self, rounds: int) -> None:
        self.left = rounds

    def append(self, kept: Round, texts: Mapping[int, str], *, last: bool) -> None:
        self.left -= 1

    def should_stop(self) -> StopReason | None:
        return None if self.left > 0 else StopReason.CANCELLED


def searched(runtime: Runtime, job: ReasoningJob, journal: Journal | None = None) -> FinishedSearch:
    return run_search(job, make_plan(job, runtime), runtime, journal or Journal())


def question(**options: Any) -> ReasoningJob:
    given: dict[str, Any] = {
        "strategy": "step",
        "rollouts": 16,
        "early_stop": False,
        "max_new_tokens": 200,
    }
    return ReasoningJob(question="What is 1 + 1?", options=SearchOptions(**given | options))


def replayed(finished: FinishedSearch, runtime: Runtime, job: ReasoningJob) -> Replayed:
    tree = finished.search.tree
    nodes = [n for n in tree.nodes if n.node_id != ROOT]
    reason = finished.search.stop_reason
    return replay(job, finished.plan, nodes, tree.rollouts, runtime, stop_reason=reason)


def test_a_search_that_an_earlier_version_planned_is_not_gone_on_with() -> None:
    job, runtime = question(), ToyRuntime()
    plan = make_plan(job, runtime)
    planned = plan.to_json()
    planned["config"] |= {
        "widening": 0.0,
        "backup": "mean",
        "fork_share": 0.02,
    }  # as it is done now
    assert SearchPlan.from_json(planned) == plan
    planned["config"] |= {"widening": 1.0}
    older = SearchPlan.from_json(planned)
    assert older.config == plan.config and older.to_json() == plan.to_json()
    for go_on in (
        lambda: run_search(job, older, runtime, Journal()),
        lambda: replay(job, older, [], [], runtime),
    ):
        with pytest.raises(SearchError, match=r"widening.*requeue --restart"):
            go_on()


@pytest.mark.parametrize(
    ("options", "failing"),
    [
        ({}, 0.0),
        ({"reflection": "branch", "strategy": "mini-step-32"}, 0.0),
        ({"reflection": "always"}, 0.3),  # branches that had failed are taken as failed
        ({"max_tokens": 300}, 0.0),
        ({"early_stop": True}, 0.0),
    ],
)
def test_the_same_engine_grows_the_same_tree(options: dict[str, Any], failing: float) -> None:
    job = question(**options)
    finished = searched(ToyRuntime(failing=failing), job)
    again = replayed(finished, ToyRuntime(), job)
    assert again.first is None
    assert (again.same_bits, again.same_text) == (True, True)
    assert again.same_nodes == again.nodes == len(finished.search.tree.nodes) - 1
    assert (again.failed > 0) is (failing > 0)


def test_a_cancelled_search_is_compared_as_far_as_it_came() -> None:
    job = question()
    finished = searched(ToyRuntime(), job, StopAfter(1))
    again = replayed(finished, ToyRuntime(), job)
    assert (again.rounds, again.same_bits) == (1, True)


@pytest.mark.parametrize("reason", ["nothing_new", "decided", "tokens"])
def test_another_reason_to_stop_than_the_tree_s_is_found(reason: str) -> None:
    job = question()
    finished = searched(ToyRuntime(), job)
    finished.search.stop_reason = StopReason(reason)
    found = replayed(finished, ToyRuntime(), job).first
    assert found and (found.stored, found.again) == (reason, "rollouts")


class Slipping(ToyRuntime):
    """Changes the log-prob, or the text, of the last token of one branch."""

    def __init__(self, branch_id: int, *, text: bool) -> None:
        super().__init__()
        self._slip = branch_id
        self._text = text

    def branch(self, expansions: Sequence[Expansion]) -> list[Branch]:
        return [
            self._changed(b) if b.branch_id == self._slip else b for b in super().branch(expansions)
        ]

    def _changed(self, branch: Branch) -> Branch:
        *before, last = branch.segments
        *tokens, token = last.tokens
        if self._text:
            token = replace(token, id=token.id + 1, text="!")
        else:
            token = replace(token, logprob=token.logprob - 0.5)
        end = Segment("".join(t.text for t in (*tokens, token)), (*tokens, token))
        return replace(branch, segments=(*before, end))


def test_the_first_difference_is_named_and_later_rounds_are_still_compared() -> None:
    job = question()
    finished = searched(ToyRuntime(), job)
    again = replayed(finished, Slipping(5, text=True), job)
    assert again.first is not None
    assert again.first.rollout_id == 5
    assert again.first.again == "'!'"
    assert again.same_rollouts == again.rollouts - 1


def test_the_same_text_with_other_log_probs_is_distinguished() -> None:
    job = question()
    finished = searched(ToyRuntime(), job)
    again = replayed(finished, Slipping(5, text=False), job)
    assert (again.same_text, again.same_bits) == (True, False)
    assert again.greatest_gap == 0.5
    assert again.first is not None


def test_another_model_is_refused() -> None:
    job = question()
    finished = searched(ToyRuntime(), job)
    finished = replace(finished, plan=replace(finished.plan, revision="1" * 64))
    with pytest.raises(ModelRefused, match="revision 111111111111, this runtime has toy-marco-o1"):
        replayed(finished, ToyRuntime(), job)


def test_the_pocket_model_gives_every_bit_again() -> None:
    job = question(rollouts=6, reflection="branch")
    with closing(open_runtime(Settings())) as runtime:
        finished = searched(runtime, job)
    with closing(open_runtime(Settings())) as runtime:
        again = replayed(finished, runtime, job)
    assert again.same_bits, again.first
    assert again.nodes > 5


def test_a_text_that_this_version_reads_otherwise_is_no_other_tree() -> None:
    """An answer that an older version stored is not what its text is judged by."""
    job = question()
    finished = searched(ToyRuntime(), job)
    tree = finished.search.tree
    place = next(i for i, r in enumerate(tree.rollouts) if r.answer is not None)
    stored = [
        replace(r, answer="as it was read then") if i == place else r
        for i, r in enumerate(tree.rollouts)
    ]
    nodes = [n for n in tree.nodes if n.node_id != ROOT]
    again = replay(job, finished.plan, nodes, stored, ToyRuntime())
    assert (again.same_text, again.same_bits, again.read_otherwise) == (True, True, 1)
    assert again.same_answers == again.rollouts - 1
