"""Sharpened votes, the stop at a clear lead, and what happens after a reflection."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from marco_search.errors import SearchError
from marco_search.search.actions import ACTIONS, Action
from marco_search.search.branches import ReflectionPlacement
from marco_search.search.budgets import StopReason
from marco_search.search.config import (
    STRATEGIES,
    ReflectionPolicy,
    SearchConfig,
    configure,
)
from marco_search.search.mcts import Merge, Search
from marco_search.search.tree import Tree
from marco_search.search.votes import Aggregation, Candidate, Scale, posterior, rank
from tests.toy import PROMPT, STEPS, ToyRuntime, answer_of


def run(
    config: SearchConfig,
    answers: tuple[str, ...] = ("1", "2", "3"),
    steps: tuple[int, int] = STEPS,
) -> Search:
    search, runtime = Search(config, PROMPT, answer_of), ToyRuntime(answers, steps=steps)
    while expansions := search.ask():
        search.tell(runtime.branch(expansions))
    return search


def test_sharpness_lets_one_confident_rollout_outweigh_two_doubtful_ones() -> None:
    votes = [Candidate("a", 0.8, 0), Candidate("a", 0.8, 1), Candidate("b", 0.95, 2)]
    assert rank(votes, Aggregation.WEIGHTED)[0].key == "a"
    sharp = rank(votes, Aggregation.WEIGHTED, Scale(sharpness=8.0))
    assert sharp[0].key == "b"
    assert sharp[0].weight == pytest.approx(0.95**8)
    assert rank(votes, Aggregation.VOTE, Scale(sharpness=8.0))[0].key == "a"


def test_a_weight_is_relative_to_where_the_values_of_a_model_lie() -> None:
    scale = Scale(sharpness=1.0, spread=0.5, reference=math.log(0.4))
    assert [scale.weight(v) for v in (0.9, 0.4, 0.2, 0.0)] == pytest.approx([1, 1, 0.25, 0])
    assert Scale(sharpness=0.0).weight(0.01) == 1.0


@pytest.mark.parametrize("sharpness", [0.0, 2.0])
def test_a_reference_beyond_what_a_float_holds_leaves_a_weight(sharpness: float) -> None:
    """As a job's overrides may set it."""
    for reference, spread, wanted in ((-800.0, 1.0, 1.0), (-400.0, 0.01, 1.0), (800.0, 1.0, 0.0)):
        config = configure("tree", reference=reference, spread=spread, sharpness=sharpness)
        assert config.scale.weight(0.5) == (wanted if sharpness else 1.0)
        assert config.scale.weight(0.0) == (0.0 if sharpness else 1.0)


@pytest.mark.parametrize(
    ("values", "chance"),
    [
        ([], 0.0),
        ("a" * 4096, 1.0),
        ("a", 0.75),
        ("aa", 0.875),
        ("aaa", 0.9375),
        ("ab", 0.5),
        ("aab", 0.6875),
    ],
)
def test_the_posterior_is_the_chance_that_the_leader_stays_ahead(
    values: str, chance: float
) -> None:
    votes = [Candidate(key, 1.0, i) for i, key in enumerate(values)]
    assert posterior(rank(votes, Aggregation.VOTE)) == pytest.approx(chance)
    assert posterior(rank([Candidate("a", 0.5, 0)], Aggregation.WEIGHTED)) == pytest.approx(
        1 - 0.5**1.5
    )


@pytest.mark.parametrize("strategy", sorted(set(STRATEGIES) - {"cot", "best-of-n"}))
def test_a_search_stops_when_its_leader_is_ahead_and_not_before(strategy: str) -> None:
    config = configure(strategy, rollouts=64, parallel=2, stop=0.7, sharpness=0.5, seed=3)
    search = run(config, ("1", "1", "2"))
    assert search.stop_reason is StopReason.LEAD
    assert posterior(search.ranked()) >= 0.7
    # Before its last round it was not there yet.
    last = search.round
    tree = search.tree
    earlier = Tree.restore(
        [n for n in tree.nodes if 0 < n.round < last],
        [r for r in tree.rollouts if r.round < last],
    )
    before = Search(config, PROMPT, answer_of, tree=earlier)
    assert posterior(before.ranked()) < 0.7


def test_without_early_stop_nothing_settles_a_search() -> None:
    search = run(configure("auto", rollouts=12, stop=0.51, patience=1, early_stop=False))
    assert search.stop_reason is StopReason.ROLLOUTS and len(search.tree.rollouts) == 12


def test_a_search_ends_when_nothing_new_comes() -> None:
    config = configure("best-of-n", rollouts=64, parallel=1, early_stop=True, patience=5)
    search = run(replace(config, choice=Aggregation.WEIGHTED), ("1", "2", "3"))
    assert search.stop_reason is StopReason.NOTHING_NEW
    first = max(min(a.rollout_ids) for a in search.ranked())
    assert len(search.tree.rollouts) == first + 1 + 5


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


@pytest.mark.parametrize("strategy", ["tree", "adaptive"])
@pytest.mark.parametrize(
    "budget", [{"rollouts": 2}, {"parallel": 1}, {"parallel": 9}, {"max_tokens": 120}]
)
def test_no_budget_takes_the_reflection_away(strategy: str, budget: dict[str, int]) -> None:
    config = configure(strategy, seed=2, temperature=0.9, early_stop=False, **budget)
    search, runtime = Search(config, PROMPT, answer_of), ToyRuntime()
    temperatures: dict[int, float] = {}
    while expansions := search.ask():
        temperatures |= {r.branch_id: r.temperature for e in expansions for r in e.branches}
        search.tell(runtime.branch(expansions))
    greedy, again = search.tree.rollouts[:2]
    assert (greedy.start_id, greedy.reflect) == (0, ReflectionPlacement.NO)
    assert again.reflect is ReflectionPlacement.FIRST and again.start_id in greedy.path
    assert temperatures[0] == temperatures[1] == 0.0
    assert sum(r.reflect is ReflectionPlacement.FIRST for r in search.tree.rollouts) == 1


TREES = [s for s in STRATEGIES if ACTIONS[STRATEGIES[s]["action"]].branches_inside]


@pytest.mark.parametrize("strategy", TREES)
@pytest.mark.parametrize("rollouts", [4, 5, 8, 16, 40])
def test_what_is_called_a_tree_search_forks_below_the_root(strategy: str, rollouts: int) -> None:
    search = run(configure(strategy, rollouts=rollouts, early_stop=False), steps=(60, 80))
    inside = [
        r.start_id
        for r in search.tree.rollouts
        if r.start_id and r.reflect is ReflectionPlacement.NO
    ]
    assert len(inside) >= rollouts // 4
    assert {"tree", "auto", "step", "mini-step-64", "mini-step-32"} <= set(TREES)


def test_a_fork_begins_with_a_candidate_that_was_passed_over() -> None:
    search = run(configure("tree", rollouts=24, early_stop=False, parallel=3))
    tree = search.tree
    forks = [r for r in tree.rollouts if r.forced is not None]
    assert len(forks) > 12
    texts = [tree.text(r.start_id) + tree.texts[r.forced or 0] for r in forks]
    assert len(set(texts)) == len(texts)  # none is tried twice
    for r in forks:
        begun = tree.nodes[r.path[r.path.index(r.start_id) + 1]].tokens[0]
        elder = tree.nodes[tree.children[r.start_id][0]].tokens[0]
        assert begun.id == r.forced != elder.id and begun.top == elder.top
        assert dict(elder.top)[begun.id] == begun.logprob
        own = r.path[r.path.index(r.start_id) + 1 :]
        assert r.generated_tokens == sum(len(tree.nodes[i].tokens) for i in own)


@pytest.mark.parametrize(
    "odd",
    [
        "{}\ufffd", "<|im_end|>", "</s>", "<eos>", "<end_of_turn>", "[/INST]",
        "<\uff5cend\u2581of\u2581sentence\uff5c>", "",
    ],
)  # fmt: skip
def test_a_candidate_without_a_text_of_its_own_is_no_fork(odd: str) -> None:
    config = configure("tree", rollouts=8, early_stop=False)
    search, runtime = Search(config, PROMPT, answer_of), ToyRuntime()
    while expansions := search.ask():
        branches = runtime.branch(expansions)
        broken = [
            replace(b, texts={i: odd.format(t) for i, t in b.texts.items()}) for b in branches
        ]
        search.tell(broken)
    assert len(search.tree.rollouts) == 8
    assert all(r.forced is None for r in search.tree.rollouts)


def test_values_no_search_can_run_with_are_refused() -> None:
    for wrong in (
        {"sharpness": -1.0},
        {"spread": 0.0},
        {"stop": 0.5},
        {"patience": 0},
        {"first_temperature": -0.1},
    ):
        with pytest.raises(SearchError, match=next(iter(wrong))):
            configure("auto", **wrong)


@pytest.mark.parametrize("place", ["", "turn"])
def test_a_field_of_a_later_version_is_refused_not_dropped(place: str) -> None:
    written = configure("auto").to_json()
    (written[place] if place else written)["later"] = 1
    with pytest.raises(SearchError, match="later"):
        SearchConfig.from_json(written)


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
