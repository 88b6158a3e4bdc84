"""The worked examples of CONTRIBUTING.md: new rewards.

A pure one, in one file: a function of ScoredRollout, and its entry in REWARDS
(marco_search/search/rewards.py). Search, replay and scoring again know it by its name.

One that calls a service, in two: its name in EXTERNAL (marco_search/search/rewards.py), and the
call in SCORERS (marco_search/scorers.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from marco_search.engine import FinishedSearch, Journal, make_plan, run_search
from marco_search.errors import InvalidJob, SearchError
from marco_search.evaluation.rescoring import score
from marco_search.evaluation.traces import traced
from marco_search.jobs import SearchOptions
from marco_search.kinds import ReasoningJob
from marco_search.replay import replay
from marco_search.scorers import SCORERS
from marco_search.search.mcts import scored_rollout
from marco_search.search.rewards import EXTERNAL, REWARDS, ScoredRollout, known_rewards
from tests.toy import ToyRuntime


def last(rollout: ScoredRollout) -> float:
    """The confidence of the last token alone."""
    return rollout.c[-1]


def longest(texts: Sequence[str]) -> Sequence[float]:
    """A scorer as a caller may have one: the longer the text, the better."""
    return [len(text) / 10_000 for text in texts]


def search(reward: str) -> tuple[ReasoningJob, FinishedSearch]:
    options = SearchOptions(strategy="step", rollouts=12, value=reward, early_stop=False)
    job = ReasoningJob(question="1 + 1?", options=options)
    runtime = ToyRuntime()
    return job, run_search(job, make_plan(job, runtime), runtime, Journal())


def same_when_replayed(job: ReasoningJob, finished: FinishedSearch) -> bool:
    tree = finished.search.tree
    return replay(job, finished.plan, tree.nodes[1:], tree.rollouts, ToyRuntime()).same_bits


def test_a_pure_reward_serves_search_replay_and_scoring_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(InvalidJob, match="value: unknown value 'last'; use one of: path, rollout"):
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


@pytest.mark.parametrize("reward", [name for name in REWARDS if name not in ("path", "rollout")])
def test_every_reward_can_lead_a_search(reward: str) -> None:
    job, finished = search(reward)
    assert all(0 <= r.value <= 1 for r in finished.search.tree.rollouts)
    assert same_when_replayed(job, finished)


def test_a_reward_that_calls_a_service_is_computed_before_the_search_sees_the_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[Sequence[str]] = []

    def scorer(texts: Sequence[str]) -> Sequence[float]:
        calls.append(texts)
        return longest(texts)

    monkeypatch.setitem(SCORERS, "longest", scorer)
    EXTERNAL.add("longest")
    try:
        job, finished = search("longest")
        tree, prompt = finished.search.tree, finished.plan.prompt
        for r in tree.rollouts:
            whole = prompt + tree.text(r.leaf_id)
            assert r.value == (0.0 if r.answer is None else longest([whole])[0])
        assert 1 < len(calls) <= finished.search.round, "one call a round"
        before = len(calls)
        assert same_when_replayed(job, finished)
        assert len(calls) == before, "a replay takes the stored values"
    finally:
        EXTERNAL.discard("longest")


def test_a_value_out_of_range_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCORERS, "service", lambda texts: [2.0 for _ in texts])
    with pytest.raises(SearchError, match="service is 2"):
        search("service")


def test_each_external_reward_has_its_scorer() -> None:
    assert set(SCORERS) == EXTERNAL <= set(known_rewards())
