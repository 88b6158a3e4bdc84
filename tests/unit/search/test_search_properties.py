"""What must hold for every search, whatever its configuration."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marco_search.errors import SearchError
from marco_search.search.actions import ACTIONS, Action
from marco_search.search.branches import MARCO_O1, Branch, Finish
from marco_search.search.budgets import StopReason
from marco_search.search.config import (
    ReflectionPolicy,
    SearchConfig,
    Selection,
    configure,
)
from marco_search.search.mcts import Search
from marco_search.search.rewards import EXTERNAL, REWARDS
from marco_search.search.selection import Frontier
from marco_search.search.tree import ROOT, Node, Rollout, Round, Tree
from marco_search.search.votes import Aggregation
from tests.toy import PROMPT, ToyRuntime, answer_of

configs = st.builds(
    SearchConfig,
    strategy=st.just("test"),
    action=st.sampled_from([*ACTIONS]),
    mini_step_tokens=st.integers(1, 6),
    rollouts=st.integers(1, 24),
    max_tokens=st.none() | st.integers(1, 400),
    max_new_tokens=st.sampled_from([1, 4, 9, 30, 200]),
    seed=st.integers(0, 2**31 - 1),
    selection=st.sampled_from(Selection),
    exploration=st.sampled_from([0.0, 0.5, 2.0]),
    branching=st.integers(1, 4),
    width=st.integers(1, 4),
    first_temperature=st.none() | st.just(0.0),
    root_width=st.integers(1, 6),
    answer_width=st.integers(1, 3),
    parallel=st.integers(1, 9),
    reward=st.sampled_from([r for r in REWARDS if r not in EXTERNAL]),
    choice=st.sampled_from(Aggregation),
    sharpness=st.sampled_from([0.0, 1.0, 32.0]),
    early_stop=st.booleans(),
    spread=st.sampled_from([0.3, 1.0]),
    reference=st.sampled_from([0.0, -2.0]),
    stop=st.none() | st.sampled_from([0.6, 0.9]),
    patience=st.none() | st.just(3),
    reflection=st.sampled_from(ReflectionPolicy),
    max_reflections=st.integers(1, 2),
)
shares = st.sampled_from([0.0, 0.3])
runtimes = st.builds(ToyRuntime, failing=shares, silent=shares)


def run(search: Search, runtime: ToyRuntime, shuffle: Random | None = None) -> list[Round]:
    """Run to the end; with `shuffle`, branches come back in any order."""
    rounds: list[Round] = []
    while expansions := search.ask():
        branches = runtime.branch(expansions)
        if shuffle is not None:
            shuffle.shuffle(branches)
        done = search.tell(branches)
        rounds.append(done)
    return rounds


def new(config: SearchConfig) -> Search:
    return Search(config, PROMPT, answer_of)


def records(rounds: list[Round]) -> tuple[list[Node], list[Rollout]]:
    return [n for r in rounds for n in r.nodes], [o for r in rounds for o in r.rollouts]


def statistics(search: Search) -> tuple[Any, ...]:
    tree, frontier = search.tree, search.frontier
    known: tuple[Any, ...] = tree.nodes, tree.rollouts, tree.visits, tree.value_sum
    if isinstance(frontier, Frontier):
        room = [frontier.room(n.node_id) for n in tree.nodes]
        known = (*known, frontier.in_flight, room)
    return known


@given(configs, runtimes)
@settings(max_examples=150, deadline=None)
def test_visits_and_values_agree_with_the_rollouts(config: SearchConfig, rt: ToyRuntime) -> None:
    search = new(config)
    run(search, rt)
    tree = search.tree
    good = [r for r in tree.rollouts if r.finish is not Finish.FAILED]
    visits = Counter(i for r in good for i in r.path)
    for node in tree.nodes:
        i = node.node_id
        assert tree.visits[i] == visits[i]
        assert tree.value_sum[i] == pytest.approx(sum(r.value for r in good if i in r.path))
        if isinstance(search.frontier, Frontier):
            assert search.frontier.in_flight[i] == 0
            below = [i, *(d for c in tree.children[i] for d in descendants(tree, c))]
            assert search.frontier.open_below[i] == sum(search.frontier.is_open[d] for d in below)
    assert all(0.0 <= r.value <= 1.0 for r in tree.rollouts)


def descendants(tree: Tree, i: int) -> list[int]:
    return [i, *(d for c in tree.children[i] for d in descendants(tree, c))]


@given(configs, runtimes)
@settings(max_examples=100, deadline=None)
def test_no_generated_token_is_thrown_away(config: SearchConfig, rt: ToyRuntime) -> None:
    """Every token of every branch is the token of a node below the node it was forked from."""
    search = new(config)
    while expansions := search.ask():
        branches = rt.branch(expansions)
        starts = {r.branch_id: e.node_id for e in expansions for r in e.branches}
        prefixes = {r.branch_id: e.prefix for e in expansions for r in e.branches}
        search.tell(branches)
        for branch in branches:
            if branch.finish is Finish.FAILED:
                continue
            held = Counter(
                t
                for d in descendants(search.tree, starts[branch.branch_id])[1:]
                for t in search.tree.nodes[d].tokens
            )
            generated = Counter(t for s in branch.segments for t in s.tokens)
            assert set(generated) <= set(held)
            rollout = search.tree.rollouts[branch.branch_id]
            path = "".join(search.tree.nodes[i].text for i in rollout.path)
            assert path == prefixes[branch.branch_id].removeprefix(PROMPT) + spoken(branch)


def spoken(branch: Branch) -> str:
    """The branch's text as it was continued: a closing that was replaced is not in it."""
    text = ""
    for segment in branch.segments:
        text = text.removesuffix(MARCO_O1.end_of_thought) if segment.forced else text
        text += segment.text
    return text


@given(configs, runtimes)
@settings(max_examples=100, deadline=None)
def test_the_tree_is_well_formed(config: SearchConfig, rt: ToyRuntime) -> None:
    search = new(config)
    nodes, rollouts = records(run(search, rt))
    assert [n.node_id for n in nodes] == list(range(1, len(nodes) + 1))
    assert [r.rollout_id for r in rollouts] == list(range(len(rollouts)))
    for node in search.tree.nodes[1:]:
        assert node.parent_id is not None
        parent = search.tree.nodes[node.parent_id]
        assert node.depth == parent.depth + 1
        assert not parent.terminal
        assert len(node.confidences) == len(node.tokens)
        assert all(0.0 <= c <= 1.0 for c in node.confidences)
    for rollout in rollouts:
        assert rollout.path[0] == ROOT
        assert rollout.start_id in rollout.path
        if rollout.finish is Finish.STOP and rollout.generated_tokens:
            assert search.tree.nodes[rollout.leaf_id].terminal


@given(configs, runtimes)
@settings(max_examples=100, deadline=None)
def test_budgets_are_never_exceeded(config: SearchConfig, rt: ToyRuntime) -> None:
    search = new(config)
    run(search, rt)
    assert len(search.tree.rollouts) <= config.rollouts
    assert config.max_tokens is None or search.tokens <= config.max_tokens
    assert rt.peak <= config.parallel
    assert all(r.generated_tokens <= config.max_new_tokens for r in search.tree.rollouts)
    assert search.stop_reason is not None
    assert search.ask() == []


@given(configs, runtimes, st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_the_same_seed_gives_the_same_tree(
    config: SearchConfig, rt: ToyRuntime, order: Random
) -> None:
    """Whatever order branches come back in, and though some come twice."""
    one, other = new(config), new(config)
    assert run(one, rt) == run(other, rt, shuffle=order)
    assert statistics(one) == statistics(other)


@given(configs, runtimes, st.data())
@settings(max_examples=100, deadline=None)
def test_a_restored_search_goes_on_identically(
    config: SearchConfig, rt: ToyRuntime, data: st.DataObject
) -> None:
    whole = new(config)
    rounds = run(whole, rt)
    kept = data.draw(st.integers(0, len(rounds)))
    nodes, rollouts = records(rounds[:kept])
    copy = SearchConfig.from_json(config.to_json())
    restored = Search(copy, PROMPT, answer_of, tree=Tree.restore(nodes, rollouts, whole.tree.texts))
    assert run(restored, rt) == rounds[kept:]
    assert statistics(restored) == statistics(whole)
    assert restored.stop_reason == whole.stop_reason
    assert restored.ranked() == whole.ranked()


@given(configs, runtimes)
@settings(max_examples=50, deadline=None)
def test_an_abandoned_round_is_asked_again(config: SearchConfig, rt: ToyRuntime) -> None:
    search = new(config)
    while expansions := search.ask():
        search.abandon()
        assert search.ask() == expansions
        search.tell(rt.branch(expansions))


@given(configs)
@settings(max_examples=50, deadline=None)
def test_reflection_follows_its_rule(config: SearchConfig) -> None:
    search = new(config)
    run(search, ToyRuntime())
    tree = search.tree
    for node in tree.nodes:
        path = [tree.nodes[i].action for i in tree.path(node.node_id)]
        reflections = path.count(Action.REFLECTION)
        assert reflections <= config.max_reflections
        if config.reflection is ReflectionPolicy.NEVER:
            assert reflections == 0
        if config.reflection is ReflectionPolicy.ALWAYS and node.terminal:
            assert reflections >= 1


def test_reflection_branches_from_the_end_of_a_thought() -> None:
    config = SearchConfig(
        strategy="t", action=Action.STEP, rollouts=24, reflection=ReflectionPolicy.BRANCH,
        early_stop=False,
    )  # fmt: skip
    search = new(config)
    run(search, ToyRuntime())
    tree = search.tree
    reflections = [n for n in tree.nodes if n.action == Action.REFLECTION]
    assert reflections
    for node in reflections:
        assert node.parent_id is not None
        siblings = {tree.nodes[i].action for i in tree.children[node.parent_id]}
        assert Action.ANSWER in siblings
        assert tree.visits[node.node_id] >= 1


def test_the_search_stops_when_the_vote_is_decided() -> None:
    config = SearchConfig(strategy="t", action=Action.WHOLE, rollouts=24, choice=Aggregation.VOTE)
    search = new(config)
    run(search, ToyRuntime(answers=("7",)))
    assert search.stop_reason is StopReason.DECIDED
    assert len(search.tree.rollouts) < 24
    assert search.ranked()[0].key == "7"


def test_the_rollout_budget_is_used_up() -> None:
    """Also where every thought is one action and the tree below the root is soon sampled."""
    config = SearchConfig(strategy="t", action=Action.MINI_STEP, rollouts=40, early_stop=False)
    search = new(config)
    run(search, ToyRuntime())
    assert search.stop_reason is StopReason.ROLLOUTS
    assert len(search.tree.rollouts) == 40


def test_no_fork_adds_to_the_tokens_that_a_job_allows() -> None:
    budgets = {"max_new_tokens": 1, "max_tokens": 9, "rollouts": 12, "early_stop": False}
    for seed in range(20):
        search = new(configure("tree", **budgets, seed=seed))
        run(search, ToyRuntime())
        assert search.tokens == 9


def test_where_the_turn_ended_at_once_no_more_is_drawn_than_elsewhere() -> None:
    config = configure("step", rollouts=64, early_stop=False, answer_width=1, seed=1)
    search = new(config)
    run(search, ToyRuntime(silent=0.4))
    tree = search.tree
    ended = [r for r in tree.rollouts if not r.generated_tokens]
    assert any(r.start_id for r in ended)
    drawn = Counter(r.start_id for r in tree.rollouts if r.start_id)
    assert max(drawn.values()) <= config.width


def test_time_and_cancelling_end_a_search() -> None:
    config = SearchConfig(strategy="t", action=Action.STEP, max_seconds=5.0)
    search = new(config)
    assert search.ask(4.9)
    search.abandon()
    assert search.ask(5.0) == []
    assert search.stop_reason is StopReason.SECONDS
    other = new(config)
    other.ask()
    other.stop()
    assert other.ask() == []
    assert other.stop_reason is StopReason.CANCELLED


def test_wrong_driving_is_refused() -> None:
    search = new(SearchConfig(strategy="t", action=Action.STEP, max_new_tokens=40))
    with pytest.raises(SearchError, match="never asked"):
        search.tell([Branch(branch_id=0, finish=Finish.STOP)])
    search.ask()
    with pytest.raises(SearchError, match="missing"):
        search.tell([])
    with pytest.raises(SearchError, match="not complete"):
        search.ask()


def test_a_loop_without_an_answer_earns_nothing() -> None:
    """A branch cut off before its answer backs up 0, however confident its tokens."""
    config = SearchConfig(strategy="t", action=Action.STEP, rollouts=4, max_new_tokens=4)
    search = new(config)
    run(search, ToyRuntime())
    cut_off = [r for r in search.tree.rollouts if r.finish is Finish.LENGTH]
    assert cut_off
    assert all(r.value == 0.0 and r.confidence > 0.0 for r in cut_off)
