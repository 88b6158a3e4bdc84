"""The worked examples of CONTRIBUTING.md: new rewards.

Each in one file: a function of ScoredRollout, and its entry in REWARDS
(marco_search/search/rewards.py). Search, verification, replay and scoring again know it by its
name. One over the scores of a reward model also has its name in EXTERNAL.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

import pytest

from marco_search.engine import FinishedSearch, Journal, make_plan, run_search
from marco_search.errors import InvalidJob, SearchError
from marco_search.evaluation.grading import score
from marco_search.evaluation.traces import traced
from marco_search.jobs import SearchOptions
from marco_search.kinds import ReasoningJob
from marco_search.replay import replay
from marco_search.scorers import Outcome, Output, Scorer, guarded
from marco_search.search.config import SearchConfig
from marco_search.search.mcts import scored_rollout
from marco_search.search.rewards import CONFIDENCE, EXTERNAL, REWARDS, ScoredRollout
from tests.toy import ToyRuntime


def last(rollout: ScoredRollout) -> float:
    """The confidence of the last token alone."""
    return rollout.c[-1]


def search(reward: str) -> tuple[ReasoningJob, FinishedSearch]:
    options = SearchOptions(strategy="step", rollouts=12, reward=reward, early_stop=False)
    job = ReasoningJob(question="1 + 1?", options=options)
    runtime = ToyRuntime()
    return job, run_search(job, make_plan(job, runtime), runtime, Journal())


def same_when_replayed(job: ReasoningJob, finished: FinishedSearch) -> bool:
    tree = finished.search.tree
    return replay(job, finished.plan, tree.nodes[1:], tree.rollouts, ToyRuntime()).same_bits


def test_a_pure_reward_serves_search_replay_and_scoring_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(InvalidJob, match="reward: unknown value 'last'; use one of: confidence"):
        search("last")
    monkeypatch.setitem(REWARDS, "last", last)
    job, finished = search("last")
    tree = finished.search.tree
    answered = [r for r in tree.rollouts if r.answer is not None]
    for r in answered:
        assert r.value == tree.nodes[r.leaf_id].confidences[-1]
        start = r.path.index(r.start_id)
        assert last(scored_rollout(tree, r.path, start, r.answer)) == r.value
    (best, *_) = finished.search.ranked()
    of_best = [r.value for r in answered if r.answer == best.key]
    assert best.weight == pytest.approx(sum(of_best)), "votes weigh the reward"
    assert same_when_replayed(job, finished)
    trace = traced(
        "key", job, tree, run="", config=finished.plan.config, stop_reason="rollouts",
        seconds=0.0, keep_tokens=True,
    )  # fmt: skip
    for kept, r in zip(trace.rollouts, tree.rollouts, strict=True):
        if r.answer is not None:
            assert score(trace, kept, "last") == pytest.approx(r.value, abs=1e-4)


@pytest.mark.parametrize(
    "reward", [name for name in REWARDS if name not in {*EXTERNAL, *CONFIDENCE}]
)
def test_every_reward_can_lead_a_search(reward: str) -> None:
    job, finished = search(reward)
    assert all(0 <= r.value <= 1 for r in finished.search.tree.rollouts)
    assert same_when_replayed(job, finished)


def test_a_formula_over_a_reward_models_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REWARDS, "prm-first", lambda rollout: next(iter(rollout.scores), 0.0))
    EXTERNAL.add("prm-first")
    asked: list[Output] = []

    def model(outputs: Sequence[Output]) -> list[Outcome]:
        asked.extend(outputs)
        return ["away" if o.answer == "3" else (0.25 * float(o.answer), 0.0) for o in outputs]

    monkeypatch.setattr("marco_search.engine.open_scorer", lambda config, earlier: model)
    try:
        job, finished = search("prm-first")
        rollouts = [r for r in finished.search.tree.rollouts if r.answer is not None]
        for r in rollouts:
            lost = r.answer == "3"
            assert r.value == (0.0 if lost else 0.25 * float(str(r.answer)))
            assert (r.scores is None, r.error) == (lost, "away" if lost else None)
        before = len(asked)
        assert before == len(rollouts)
        assert same_when_replayed(job, finished)
        assert len(asked) == before, "a replay takes the stored scores"
        assert "3" not in {answer.key for answer in finished.search.ranked()}, "no weight"
    finally:
        EXTERNAL.discard("prm-first")


def test_scores_out_of_range_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "marco_search.engine.open_scorer",
        lambda config, earlier: lambda given: [(2.0,)] * len(given),
    )
    with pytest.raises(SearchError, match="outside"):
        search("prm-last")


def test_a_reward_that_is_no_share_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong: Any
    for wrong in (float("nan"), 1.5, -0.1, None):
        monkeypatch.setitem(REWARDS, "odd", lambda rollout: wrong)  # noqa: B023
        with pytest.raises(SearchError, match=r"reward odd is .*, not a number from 0 to 1"):
            search("odd")


ASKED = Output(
    kind="reasoning", question="1+1?", metadata={}, key="2", answer="2", output="2", thought=""
)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ([], "service: ValueError: 0 outcomes for 1 outputs"),
        ([None], "service: None is neither scores nor a reason"),
        ([(0.5, 2.0)], "service: a score is not in 0 to 1"),
        ([(float("nan"),)], "service: a score is not in 0 to 1"),
        (["no\nidea"], r"service: no\nidea"),
        ([[0.5, 1]], (0.5, 1.0)),
    ],
)
def test_what_a_scorer_says_is_checked(said: list[Any], reason: object) -> None:
    assert guarded(lambda outputs: said, "service")([ASKED]) == [reason]


def test_a_service_that_fails_costs_scores_and_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count()

    def service(outputs: Sequence[Output]) -> Sequence[Outcome]:
        if next(calls) % 2:
            raise ConnectionError("down")
        return [(0.5,)] * len(outputs)

    def opened(config: SearchConfig, earlier: object) -> Scorer:
        return guarded(service, "service")

    monkeypatch.setitem(REWARDS, "mine", lambda rollout: next(iter(rollout.scores), 0.0))
    EXTERNAL.add("mine")
    monkeypatch.setattr("marco_search.engine.open_scorer", opened)
    try:
        _, finished = search("mine")
    finally:
        EXTERNAL.discard("mine")
    rollouts = [r for r in finished.search.tree.rollouts if r.answer is not None]
    assert {(r.scores, r.error) for r in rollouts} == {
        ((0.5,), None),
        (None, "service: ConnectionError: down"),
    }
