"""The trail gives back exactly what was written, and a search goes on from it."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marco_search.errors import LeaseLost, SearchError
from marco_search.search.actions import Action
from marco_search.search.branches import Finish, ReflectionPlacement, Token
from marco_search.search.mcts import Search
from marco_search.search.tree import Node, Rollout, Round, Tree
from marco_search.store.db import Database
from marco_search.store.queue import leases
from marco_search.store.reads import queries
from marco_search.store.trail import trail
from tests.integration.toys import claim, insert, open_database, question, rounds_of
from tests.toy import PROMPT, ToyRuntime, answer_of

text = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=12)
float32 = st.floats(width=32, allow_nan=False)
float64 = st.floats(0, 1)
int32 = st.integers(0, 2**31 - 1)
candidates = st.lists(st.tuples(int32, float32), min_size=1, max_size=5).map(tuple)
tokens = st.lists(st.builds(Token, int32, text, float32, candidates), max_size=6).map(tuple)


actions = st.sampled_from([Action.STEP, Action.REFLECTION, Action.ANSWER])


@st.composite
def rounds(draw: st.DrawFn) -> Round:
    nodes, ids = [], []
    for i in range(1, draw(st.integers(1, 4)) + 1):
        held = draw(tokens)
        nodes.append(
            Node(
                node_id=i, parent_id=draw(st.integers(0, i - 1)), depth=draw(st.integers(1, 9)),
                round=1, action=draw(actions), text=draw(text), tokens=held,
                confidences=tuple(draw(float64) for _ in held), terminal=draw(st.booleans()),
            )
        )  # fmt: skip
        ids.append(i)
    rollouts = [
        Rollout(
            rollout_id=i, round=1, start_id=0, path=(0, *ids[:i]), seed=draw(int32),
            reflect=draw(st.sampled_from(ReflectionPlacement)),
            finish=draw(st.sampled_from(Finish)),
            confidence=draw(float64), path_confidence=draw(float64), value=draw(float64),
            answer=draw(st.none() | text), generated_tokens=draw(int32), prompt_tokens=draw(int32),
            cached_tokens=draw(int32), seconds=draw(st.floats(0, 1e6)),
            error=draw(st.none() | text),
        )
        for i in range(draw(st.integers(0, 3)))
    ]  # fmt: skip
    return Round(number=1, nodes=tuple(nodes), rollouts=tuple(rollouts))


@pytest.fixture(scope="module")
def shared(module_database_url: str) -> Iterator[Database]:
    """One database for all tests here: hypothesis would need one for each example."""
    url = module_database_url
    with open_database(url) as opened:
        yield opened


@given(rounds())
@settings(max_examples=60, deadline=None)
def test_every_record_comes_back_as_it_was(shared: Database, kept: Round) -> None:
    (job,) = insert(shared, question())
    claimed = claim(shared, job.id)
    assert claimed is not None
    with shared.transaction() as conn:
        trail.append(conn, claimed[1], kept, seconds=1.0)
    with shared.transaction() as conn:
        nodes, rollouts = trail.load(conn, job.id)
    assert tuple(nodes) == kept.nodes
    assert tuple(rollouts) == kept.rollouts
    # Equal is not enough: 0.0 equals -0.0.
    for before, after in zip(kept.nodes, nodes, strict=True):
        packed = [struct.pack("d", t.logprob) for t in before.tokens]
        assert [struct.pack("d", t.logprob) for t in after.tokens] == packed


def stored(database: Database, rounds: Sequence[Round], *, seconds: float) -> UUID:
    """A claimed job with these rounds, each in a transaction of its own."""
    (job,) = insert(database, question())
    claimed = claim(database, job.id)
    assert claimed is not None
    for kept in rounds:
        with database.transaction() as conn:
            trail.append(conn, claimed[1], kept, seconds=seconds)
    return job.id


@pytest.mark.parametrize("kept_rounds", [0, 1, 3])
def test_a_restored_search_goes_on_as_the_interrupted_one(
    shared: Database, kept_rounds: int
) -> None:
    whole, all_rounds = rounds_of(seed=3)
    job_id = stored(shared, all_rounds[:kept_rounds], seconds=1.0)
    with shared.transaction() as conn:
        nodes, rollouts = trail.load(conn, job_id)
    search = Search(whole.config, PROMPT, answer_of, tree=Tree.restore(nodes, rollouts))
    runtime = ToyRuntime()
    while expansions := search.ask():
        search.tell(runtime.branch(expansions))
    assert search.tree.nodes == whole.tree.nodes
    assert search.tree.rollouts == whole.tree.rollouts
    assert search.tree.value_sum == whole.tree.value_sum
    assert search.ranked() == whole.ranked()


def test_the_views_agree_with_the_tree(shared: Database) -> None:
    search, kept = rounds_of(seed=5)
    job_id = stored(shared, kept, seconds=2.5)
    tree = search.tree
    with shared.transaction() as conn:
        rows = conn.execute(
            "SELECT node_id, visits, value, path, tokens, confidence FROM tree"
            " WHERE job_id = %s ORDER BY node_id",
            [job_id],
        ).fetchall()
        status = queries.statuses(conn, [job_id])[0]
    assert len(rows) == len(tree.nodes)
    for node, (node_id, visits, value, path, count, confidence) in zip(
        tree.nodes, rows, strict=True
    ):
        assert node.node_id == node_id
        assert visits == tree.visits[node_id]
        assert (value or 0.0) == pytest.approx(tree.mean_value(node_id))
        assert tuple(path) == tree.path(node_id)
        assert count == len(node.tokens)
        if node.tokens:
            assert confidence == pytest.approx(math.fsum(node.confidences) / count)
    assert (status.nodes, status.rollouts) == (len(tree.nodes) - 1, len(tree.rollouts))
    assert (status.rounds, status.seconds) == (len(kept), 2.5)
    assert status.generated_tokens == search.tokens


def test_what_can_not_be_chosen_has_probability_0(shared: Database) -> None:
    """Servers' minus infinity, and the fill where they give fewer than five candidates."""
    lowest = struct.unpack("f", struct.pack("f", -3.4e38))[0]
    top = ((7, -0.5), (8, -800.0), (9, lowest))
    node = Node(
        node_id=1, parent_id=0, depth=1, round=1, action=Action.STEP, text="ab",
        tokens=(Token(7, "a", -0.5, top), Token(9, "b", lowest, top)), confidences=(1.0, 0.0),
    )  # fmt: skip
    job_id = stored(shared, [Round(number=1, nodes=(node,), rollouts=())], seconds=1.0)
    with shared.transaction() as conn:
        for view, some in (("tokens", 1), ("alternatives", 2)):
            query = f"SELECT probability FROM {view} WHERE job_id = %s ORDER BY 1"  # noqa: S608
            found = [p for (p,) in conn.execute(query.encode(), [job_id])]
            assert found == [0.0] * (len(found) - some) + [pytest.approx(math.exp(-0.5))] * some


def test_a_node_that_no_rollout_visits_has_its_path_too(shared: Database) -> None:
    search, kept = rounds_of(seed=5)
    job_id = stored(shared, [replace(done, rollouts=()) for done in kept], seconds=1.0)
    with shared.transaction() as conn:
        query = "SELECT node_id, visits, path FROM tree WHERE job_id = %s ORDER BY node_id"
        rows = conn.execute(query, [job_id]).fetchall()
    paths = [(node.node_id, 0, [*search.tree.path(node.node_id)]) for node in search.tree.nodes]
    assert max(len(path) for *_, path in paths) > 2
    assert rows == paths


def test_a_tree_is_read_whole_while_its_worker_adds_a_round(shared: Database) -> None:
    _, (first, second, *_) = rounds_of(seed=3)
    (job,) = insert(shared, question())
    claimed = claim(shared, job.id)
    assert claimed is not None
    with shared.transaction() as conn:
        trail.append(conn, claimed[1], first, seconds=1.0)
    with shared.transaction(one_moment=True) as reading:
        nodes, _ = trail.load(reading, job.id)
        with shared.transaction() as conn:
            trail.append(conn, claimed[1], second, seconds=1.0)
        _, rollouts = trail.load(reading, job.id)
        assert Tree.restore(nodes, rollouts).visits[0] == len(first.rollouts)


def test_a_round_is_kept_once_and_rounds_are_kept_in_order(shared: Database) -> None:
    _, kept = rounds_of()
    (job,) = insert(shared, question())
    claimed = claim(shared, job.id)
    assert claimed is not None
    for _ in range(2):  # the second time is a commit whose answer was lost
        with shared.transaction() as conn:
            trail.append(conn, claimed[1], kept[0], seconds=1.0)
    with shared.transaction() as conn:
        nodes, rollouts = trail.load(conn, job.id)
    assert tuple(nodes) == kept[0].nodes
    assert tuple(rollouts) == kept[0].rollouts
    with pytest.raises(SearchError), shared.transaction() as conn:
        trail.append(conn, claimed[1], kept[2], seconds=1.0)


def test_a_round_whose_transaction_fails_leaves_nothing(shared: Database) -> None:
    _, kept = rounds_of()
    (job,) = insert(shared, question())
    claimed = claim(shared, job.id)
    assert claimed is not None

    class Crash(Exception):
        pass

    with pytest.raises(Crash), shared.transaction() as conn:
        trail.append(conn, claimed[1], kept[0], seconds=1.0)
        raise Crash
    with shared.transaction() as conn:
        assert trail.load(conn, job.id) == ([], [])
        assert queries.statuses(conn, [job.id])[0].nodes == 0
        with pytest.raises(LeaseLost):
            leases.heartbeat(conn, leases.Lease(job_id=job.id, generation=9, seconds=1))


def test_an_empty_trail_is_an_empty_tree(shared: Database) -> None:
    search, _ = rounds_of()
    (job,) = insert(shared, question())
    with shared.transaction() as conn:
        nodes, rollouts = trail.load(conn, job.id)
        assert conn.execute("SELECT * FROM tree WHERE job_id = %s", [job.id]).fetchall() == []
    assert Tree.restore(nodes, rollouts).nodes == search.tree.nodes[:1]
