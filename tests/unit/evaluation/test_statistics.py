"""The statistics against values known from elsewhere."""

from __future__ import annotations

from itertools import combinations

import pytest

from marco_search.evaluation.statistics import (
    auroc,
    calibration,
    calibration_error,
    mcnemar,
    paired,
    pass_at_k,
    ratio,
    wilson,
)


def test_wilson_has_the_published_values() -> None:
    # Newcombe (1998), table I, method 3: 81/263 and 15/148, 0/20, 1/29.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    assert wilson(0, 0) == (0.0, 1.0)


def test_mcnemar_is_the_binomial_test_of_the_discordant_pairs() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 0) == 2 / 2**5
    assert mcnemar(8, 2) == pytest.approx(2 * (1 + 10 + 45) / 2**10)
    assert mcnemar(3, 3) == 1.0


def test_paired_bootstrap_knows_a_clear_gain_from_none() -> None:
    first = [True] * 80 + [False] * 20
    second = [True] * 60 + [False] * 40
    gain = paired(first, second)
    assert gain.difference == pytest.approx(0.2)
    assert (gain.only_first, gain.only_second) == (20, 0)
    # A resample's gain is binomial(100, 0.2) / 100.
    assert (gain.low, gain.high) == pytest.approx((0.12, 0.28), abs=0.011)
    assert gain.clear
    assert paired(first, second) == gain
    same = paired(first, first)
    assert (same.difference, same.low, same.high, same.clear) == (0, 0, 0, False)


def test_paired_wants_the_same_problems() -> None:
    with pytest.raises(ValueError, match="same problems"):
        paired([True], [True, False])


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [([6, 2], [3, 1], 2), ([4, 2], [0, 0], 3), ([0], [0], 1), ([5, 1, 0], [0, 0, 4], 7 / 6)],
)
def test_a_ratio_of_tokens_is_a_number_also_where_there_are_none(
    first: list[int], second: list[int], expected: float
) -> None:
    found = ratio(first, second)
    assert found.ratio == pytest.approx(expected)
    assert found.low <= found.ratio <= found.high


def test_auroc_counts_pairs_with_ties_half() -> None:
    scores = [0.1, 0.4, 0.4, 0.8, 0.9]
    labels = [False, True, False, False, True]
    right = [s for s, hit in zip(scores, labels, strict=True) if hit]
    wrong = [s for s, hit in zip(scores, labels, strict=True) if not hit]
    wins = sum((r > w) + 0.5 * (r == w) for r in right for w in wrong)
    assert auroc(scores, labels) == pytest.approx(wins / 6)
    assert auroc([0.5, 0.6], [True, True]) is None


def test_calibration_bins_hold_equally_many() -> None:
    scores = [i / 100 for i in range(100)]
    bins = calibration(scores, [s >= 0.5 for s in scores])
    assert [b.n for b in bins] == [10] * 10
    assert [b.accuracy for b in bins] == [0.0] * 5 + [1.0] * 5
    assert calibration_error(bins) == pytest.approx(0.25, abs=0.01)
    assert calibration_error([]) is None


def test_equal_confidences_are_right_by_their_common_share() -> None:
    for labels in ([True, False] * 20, [True] * 20 + [False] * 20):
        assert calibration_error(calibration([0.5] * 40, labels)) == pytest.approx(0)


def test_test_at_n_is_the_share_of_subsets_with_a_right_guess() -> None:
    guesses = [True, False, False, True, False, False]
    for k in range(1, 7):
        subsets = list(combinations(guesses, k))
        expected = sum(any(s) for s in subsets) / len(subsets)
        assert pass_at_k(6, 2, k) == pytest.approx(expected)
    with pytest.raises(ValueError, match="at least 8"):
        pass_at_k(6, 2, 8)
