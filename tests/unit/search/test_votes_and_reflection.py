"""Sharpened votes, the stop at a clear lead, and what happens after a reflection."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from marco_search.errors import SearchError
from marco_search.search.actions import Action
from marco_search.search.branches import ReflectionPlacement
from marco_search.search.budgets import StopReason
from marco_search.search.config import STRATEGIES, ReflectionPolicy, SearchConfig, configure
from marco_search.search.mcts import Merge, Search
from marco_search.search.tree import Tree
from marco_search.search.votes import Aggregation, Candidate, lead, rank
from tests.toy import PROMPT, ToyRuntime, answer_of


def run(config: SearchConfig, answers: tuple[str, ...] = ("1", "2", "3")) -> Search:
    search, runtime = Search(config, PROMPT, answer_of), ToyRuntime(answers)
    while expansions := search.ask():
        search.tell(runtime.branch(expansions))
    return search


def test_sharpness_lets_one_confident_rollout_outweigh_two_doubtful_ones() -> None:
    votes = [Candidate("a", 0.8, 0), Candidate("a", 0.8, 1), Candidate("b", 0.95, 2)]
    assert rank(votes, Aggregation.WEIGHTED)[0].key == "a"
    sharp = rank(votes, Aggregation.WEIGHTED, sharpness=8.0)
    assert sharp[0].key == "b"
    assert sharp[0].weight == pytest.approx(0.95**8)
    assert rank(votes, Aggregation.VOTE, sharpness=8.0)[0].key == "a"


def test_lead_is_the_distance_to_the_runner_up() -> None:
    assert lead([]) == 0.0
    votes = [Candidate("a", 0.5, 0), Candidate("b", 0.25, 1)]
    assert lead(rank(votes[:1], Aggregation.WEIGHTED)) == 0.5
    assert lead(rank(votes, Aggregation.WEIGHTED)) == 0.25


@pytest.mark.parametrize("strategy", sorted(set(STRATEGIES) - {"cot", "best-of-n"}))
def test_a_search_stops_at_its_lead_and_not_before(strategy: str) -> None:
    config = configure(strategy, rollouts=64, parallel=2, lead=0.5, sharpness=1.0, seed=3)
    search = run(config, ("1", "1", "2"))
    assert search.stop_reason is StopReason.LEAD
    assert lead(search.ranked()) >= 0.5
    # Before its last round it was not there yet.
    last = search.round
    tree = search.tree
    earlier = Tree.restore(
        [n for n in tree.nodes if 0 < n.round < last],
        [r for r in tree.rollouts if r.round < last],
    )
    before = Search(config, PROMPT, answer_of, tree=earlier)
    assert lead(before.ranked()) < 0.5


def test_without_early_stop_a_lead_stops_nothing() -> None:
    search = run(configure("auto", rollouts=12, lead=0.1, early_stop=False))
    assert search.stop_reason is StopReason.ROLLOUTS and len(search.tree.rollouts) == 12


@pytest.mark.parametrize("action", [Action.STEP, Action.WHOLE])
def test_so_many_samples_are_drawn_after_a_reflection(action: str) -> None:
    config = SearchConfig(
        strategy="test",
        action=action,
        rollouts=40,
        choice=Aggregation.VOTE,
        reflection=ReflectionPolicy.BRANCH,
        root_width=2,
        width=1,
        reflection_width=5,
        early_stop=False,
    )
    search = run(config)
    tree = search.tree
    drawn = {n.node_id: 0 for n in tree.nodes if n.action == Action.REFLECTION}
    for r in tree.rollouts:
        for node_id in set(r.path[r.path.index(r.start_id) : -1]) & set(drawn):
            drawn[node_id] += 1
    assert drawn and max(drawn.values()) == 5


def test_confidence_starts_over_after_a_reflection() -> None:
    config = configure(
        "auto", rollouts=16, early_stop=False, seed=1, reflection=ReflectionPolicy.BRANCH
    )
    search = run(config)
    tree, seen = search.tree, 0
    for r in tree.rollouts:
        at = [i for i in r.path if tree.nodes[i].action == Action.REFLECTION]
        tail = r.path[r.path.index(at[-1]) :] if at else r.path
        values = [c for i in tail for c in tree.nodes[i].confidences]
        assert r.path_confidence == pytest.approx(sum(values) / len(values))
        seen += bool(at)
    assert seen


def test_the_first_sample_at_the_root_and_after_each_reflection_is_greedy() -> None:
    config = configure(
        "auto", rollouts=12, early_stop=False, seed=4, temperature=0.9, parallel=3, widening=0.3
    )
    search, runtime, temperatures = Search(config, PROMPT, answer_of), ToyRuntime(), {}
    while expansions := search.ask():
        for expansion in expansions:
            for request in expansion.branches:
                temperatures[request.branch_id] = request.temperature
        search.tell(runtime.branch(expansions))
    restarted = {
        r.rollout_id for r in search.tree.rollouts if r.reflect is ReflectionPlacement.FIRST
    }
    assert len(restarted) >= 3
    assert {i for i, t in temperatures.items() if t == 0.0} == {0} | restarted
    assert set(temperatures.values()) == {0.0, 0.9}


def test_auto_takes_a_second_look_at_the_greedy_thought_before_it_draws_many() -> None:
    search = run(configure("auto", rollouts=8, early_stop=False, seed=2), ("1", "2"))
    greedy, *later = search.tree.rollouts
    assert (greedy.round, greedy.start_id, greedy.reflect) == (1, 0, ReflectionPlacement.NO)
    fresh, second_look = (r for r in later if r.round == 2)
    assert (fresh.start_id, fresh.reflect) == (0, ReflectionPlacement.NO)
    assert second_look.reflect is ReflectionPlacement.FIRST and second_look.start_id in greedy.path
    assert sum(r.start_id == 0 for r in later if r.round > 2) >= 4


@pytest.mark.parametrize("widening", [0.25, 0.5, 1.0])
def test_the_root_widens_with_its_visits(widening: float) -> None:
    config = configure(
        "step", rollouts=24, root_width=1, widening=widening, early_stop=False, parallel=1, width=9
    )
    fresh = 0
    for i, rollout in enumerate(run(config).tree.rollouts):
        fresh += rollout.start_id == 0
        assert fresh <= 1 + widening * i
    assert fresh >= widening * 20


def test_the_temperature_falls_with_the_depth_that_a_branch_forks_at() -> None:
    config = configure(
        "step", rollouts=24, early_stop=False, temperature=0.8, temperature_decay=0.5
    )
    search, runtime, depths = Search(config, PROMPT, answer_of), ToyRuntime(), set()
    while expansions := search.ask():
        for expansion in expansions:
            depth = search.tree.nodes[expansion.node_id].depth
            depths.add(depth)
            assert {r.temperature for r in expansion.branches} == {0.8 * 0.5**depth}
        search.tell(runtime.branch(expansions))
    assert len(depths) > 2


@pytest.mark.parametrize("reuse", [True, False])
def test_without_reuse_branches_fork_at_the_root_and_at_first_nodes_only(reuse: bool) -> None:
    config = configure("step", rollouts=32, early_stop=False, reuse=reuse, root_width=2, width=2)
    rollouts = run(config).tree.rollouts
    first = {r.path[r.path.index(r.start_id) + 1] for r in rollouts}
    assert ({r.start_id for r in rollouts} <= {0} | first) is not reuse
    assert len({r.start_id for r in rollouts}) > 2


def test_values_no_search_can_run_with_are_refused() -> None:
    for wrong in (
        {"temperature_decay": 0.0},
        {"sharpness": -1.0},
        {"lead": 0.0},
        {"reflection_width": 0},
        {"widening": 1.5},
        {"first_temperature": -0.1},
    ):
        with pytest.raises(SearchError, match=next(iter(wrong))):
            configure("auto", **wrong)


@pytest.mark.parametrize("changes", [{"strategy": "best-of-n"}, {"strategy": "vote"}])
@pytest.mark.parametrize("seed", range(5))
def test_independent_samples_go_out_together_and_are_the_same(
    changes: dict[str, Any], seed: int
) -> None:
    given: dict[str, Any] = changes | {"rollouts": 20, "seed": seed, "early_stop": False}
    together, apart = configure(**given), configure(**given, parallel=3)
    assert together.parallel == 20
    one, other = run(together), run(apart)
    assert (one.round, other.round) == (1, 7)
    assert one.ranked() == other.ranked()
    assert [replace(r, round=0) for r in one.tree.rollouts] == [
        replace(r, round=0) for r in other.tree.rollouts
    ]


@pytest.mark.parametrize(
    "changes",
    [{"max_tokens": 500}, {"max_seconds": 9.0}, {"reflection": ReflectionPolicy.BRANCH}],
)
def test_a_budget_or_a_reflection_keeps_the_rounds(changes: dict[str, Any]) -> None:
    assert configure("best-of-n", rollouts=20, **changes).parallel == 8
    assert configure("vote", rollouts=20).parallel == 8  # it may end before its budget does


def test_near_duplicates_are_one_answer_before_the_vote_is_taken_to_be_decided() -> None:
    def run_merged(merge: Merge | None) -> Search:
        config = configure("vote", rollouts=12)
        search = Search(config, PROMPT, answer_of, merge=merge)
        runtime = ToyRuntime(("1", "2", "3"))
        while expansions := search.ask():
            search.tell(runtime.branch(expansions))
        return search

    merged = run_merged(lambda answers: ["1" for _ in answers])
    assert merged.stop_reason == "decided" and len(merged.ranked()) == 1
    assert len(merged.tree.rollouts) < len(run_merged(None).tree.rollouts)
