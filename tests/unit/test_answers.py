"""Ranking of distinct answers, and when a vote is decided."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marco_search.errors import SearchError
from marco_search.search.votes import Aggregation, Candidate, Scale, decided, rank

HOWS = list(Aggregation)


def candidates(*pairs: tuple[str, float]) -> list[Candidate]:
    return [Candidate(key, value, i) for i, (key, value) in enumerate(pairs)]


SPLIT = candidates(("a", 0.5), ("b", 0.9), ("a", 0.3), ("b", 0.0), ("a", 0.4), ("c", 0.95))


@pytest.mark.parametrize(
    ("how", "order", "weights"),
    [
        (Aggregation.VOTE, "abc", [3, 2, 1]),
        (Aggregation.WEIGHTED, "acb", [1.2, 0.95, 0.9]),
        (Aggregation.BEST, "cba", [0.95, 0.9, 0.5]),
    ],
)
def test_three_ways_to_rank(how: Aggregation, order: str, weights: list[float]) -> None:
    ranked = rank(SPLIT, how)
    assert "".join(a.key for a in ranked) == order
    assert [a.weight for a in ranked] == pytest.approx(weights)
    assert [a.share for a in ranked] == pytest.approx([w / sum(weights) for w in weights])


def test_figures_of_an_answer() -> None:
    a = next(a for a in rank(SPLIT, Aggregation.WEIGHTED) if a.key == "a")
    assert (a.votes, a.rollout_ids, a.best_rollout_id, a.best_value) == (3, (0, 2, 4), 0, 0.5)
    assert a.confidence == pytest.approx(0.4)


def test_ties_go_to_the_better_then_the_earlier_rollout() -> None:
    ranked = rank(candidates(("a", 0.5), ("b", 0.7), ("b", 0.3), ("a", 0.5)), Aggregation.VOTE)
    assert [x.key for x in ranked] == ["b", "a"]
    ranked = rank(candidates(("b", 0.5), ("a", 0.5)), Aggregation.BEST)
    assert [x.key for x in ranked] == ["b", "a"]
    assert rank(candidates(("a", 0.5), ("a", 0.5)), Aggregation.VOTE)[0].best_rollout_id == 0


def test_no_confidence_at_all_still_shares_the_vote() -> None:
    ranked = rank(candidates(("a", 0.0), ("a", 0.0), ("b", 0.0)), Aggregation.WEIGHTED)
    assert [a.share for a in ranked] == pytest.approx([2 / 3, 1 / 3])


def test_sharpness_lets_one_sure_rollout_outweigh_two_unsure_ones() -> None:
    split = candidates(("a", 0.5), ("a", 0.5), ("b", 0.9))
    assert rank(split, Aggregation.WEIGHTED)[0].key == "a"
    sharp = rank(split, Aggregation.WEIGHTED, Scale(sharpness=4.0))
    assert sharp[0].key == "b"
    assert sharp[0].weight == pytest.approx(0.9**4)


def test_nothing_to_rank() -> None:
    for how in HOWS:
        assert rank([], how) == []
    assert not decided([], 0)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_values_must_be_confidences(value: float) -> None:
    with pytest.raises(SearchError, match=r"rollout 0 has value"):
        rank(candidates(("a", value)), Aggregation.VOTE)


def test_a_rollout_votes_once() -> None:
    with pytest.raises(SearchError, match="twice"):
        rank([Candidate("a", 0.5, 3), Candidate("b", 0.5, 3)], Aggregation.VOTE)


def test_decided_by_a_lead_that_the_rest_cannot_make_up() -> None:
    ranked = rank(candidates(("a", 1), ("a", 1), ("a", 1), ("b", 1)), Aggregation.VOTE)
    assert decided(ranked, 0)
    assert decided(ranked, 1)
    assert not decided(ranked, 2)  # a tie may go either way


def test_an_answer_not_seen_yet_may_overtake() -> None:
    ranked = rank(candidates(("a", 0.9), ("a", 0.9)), Aggregation.WEIGHTED)
    assert decided(ranked, 1)
    assert not decided(ranked, 2)


def test_best_is_decided_only_at_the_end() -> None:
    ranked = rank(candidates(("a", 1.0), ("b", 0.1)), Aggregation.BEST)
    assert not decided(ranked, 1)
    assert decided(ranked, 0)


POOL = st.lists(st.tuples(st.sampled_from("abcd"), st.floats(0, 1)), max_size=12)


@given(POOL, st.sampled_from(HOWS), st.randoms(use_true_random=False))
def test_order_of_arrival_does_not_matter(
    pool: list[tuple[str, float]], how: Aggregation, random: object
) -> None:
    given_ = candidates(*pool)
    shuffled = list(given_)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert rank(shuffled, how) == rank(given_, how)


@given(POOL, st.sampled_from(HOWS))
def test_every_rollout_is_counted_once(pool: list[tuple[str, float]], how: Aggregation) -> None:
    ranked = rank(candidates(*pool), how)
    assert sorted(i for a in ranked for i in a.rollout_ids) == list(range(len(pool)))
    assert sum(a.votes for a in ranked) == len(pool)
    assert not pool or sum(a.share for a in ranked) == pytest.approx(1)
    assert all(0 <= a.confidence <= a.best_value <= 1 or a.confidence == pytest.approx(a.best_value)
               for a in ranked)  # fmt: skip


@given(POOL, POOL, st.sampled_from(HOWS))
def test_decided_means_decided(
    pool: list[tuple[str, float]], more: list[tuple[str, float]], how: Aggregation
) -> None:
    ranked = rank(candidates(*pool), how)
    if decided(ranked, len(more)):
        assert rank(candidates(*pool, *more), how)[0].key == ranked[0].key
