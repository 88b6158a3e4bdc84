"""Sampling follows the distribution that temperature and top-p make, and nothing else."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marco_search.runtime.embedded.linear import Floats
from marco_search.runtime.embedded.sampling import (
    Picks,
    Uniforms,
    pick,
    uniforms,
)
from marco_search.search.branches import TOP_K

VOCAB = 77
DRAWS = 20_000


@cache
def numbers(rows: int) -> Uniforms:
    """The first number of each of `rows` seeds."""
    return np.array([uniforms(seed, 1)[0] for seed in range(rows)])


def draw(logits: Floats, temperature: float = 1.0, top_p: float = 1.0) -> Picks:
    rows = len(logits)
    ones = np.ones(rows, np.float32)
    return pick(logits, ones * temperature, ones * top_p, numbers(rows))


def one_row(seed: int = 0) -> Floats:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((1, VOCAB)) * 2).astype(np.float32)


def softmax(logits: Floats) -> np.ndarray:  # type: ignore[type-arg]
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()  # type: ignore[no-any-return]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("top_p", [0.3, 0.9, 1.0])
def test_frequencies_are_the_distribution(temperature: float, top_p: float) -> None:
    logits = one_row()
    expected = softmax(logits[0] / temperature)
    order = np.argsort(-expected)
    nucleus = order[: int(np.searchsorted(np.cumsum(expected[order]), top_p)) + 1]
    kept = np.zeros(VOCAB)
    kept[nucleus] = expected[nucleus] / expected[nucleus].sum()
    tokens = draw(np.repeat(logits, DRAWS, 0), temperature, top_p).tokens
    counts = np.bincount(tokens, minlength=VOCAB)
    assert set(np.flatnonzero(counts)) <= set(nucleus)
    likely = kept * DRAWS >= 5
    expected_counts = np.append(kept[likely], kept[~likely].sum() + 1e-12) * DRAWS
    found = np.append(counts[likely], counts[~likely].sum())
    chi2 = ((found - expected_counts) ** 2 / expected_counts).sum()
    # Far above the 99.99 % point for these degrees of freedom; the draws are fixed.
    assert chi2 < len(found) + 5 * np.sqrt(2 * len(found)) + 5


@given(st.integers(0, 2**63), st.integers(1, 1000))
def test_uniforms_are_in_range_and_depend_on_seed_and_token(seed: int, count: int) -> None:
    found = uniforms(seed, count)
    assert ((found >= 0) & (found <= 1 - 2**-32)).all()
    assert len(set(found.tolist()) | set(uniforms(seed + 1, count).tolist())) == 2 * count
    assert np.array_equal(uniforms(seed, count + 10)[:count], found)


def test_uniforms_are_uniform_along_seeds_and_along_tokens() -> None:
    for found in (numbers(DRAWS), uniforms(5, DRAWS)):
        counts = np.histogram(found, 50, (0, 1))[0]
        expected = len(found) / 50
        assert ((counts - expected) ** 2 / expected).sum() < 100
        assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.03


def test_temperature_zero_takes_the_best_and_the_lower_id_among_equals() -> None:
    logits = np.zeros((3, VOCAB), np.float32)
    logits[0, 40] = logits[1, 70] = logits[1, 20] = 3
    assert draw(logits, 0.0).tokens.tolist() == [40, 20, 0]


def test_log_probs_are_those_at_temperature_one() -> None:
    logits = one_row(1)
    exact = np.log(softmax(logits[0]))
    for temperature in (0.0, 0.3, 1.0, 2.0):
        picks = draw(logits, temperature)
        token = int(picks.tokens[0])
        assert picks.logprobs[0] == pytest.approx(exact[token], abs=1e-5)
        assert picks.top_ids[0].tolist() == np.argsort(-exact)[:TOP_K].tolist()
        assert picks.top_logprobs[0] == pytest.approx(np.sort(exact)[::-1][:TOP_K], abs=1e-5)


def test_a_rows_choice_does_not_depend_on_its_neighbours() -> None:
    rng = np.random.default_rng(2)
    logits = (rng.standard_normal((60, VOCAB)) * 3).astype(np.float32)
    temperatures = rng.choice([0, 0.7, 1], 60).astype(np.float32)
    top_ps = rng.choice([0.5, 1], 60).astype(np.float32)
    given_numbers = numbers(60)
    together = pick(logits, temperatures, top_ps, given_numbers)
    for i in range(60):
        row = slice(i, i + 1)
        alone = pick(logits[row], temperatures[row], top_ps[row], given_numbers[row])
        assert alone.tokens[0] == together.tokens[i]
        assert alone.logprobs[0] == together.logprobs[i]
        assert np.array_equal(alone.top_logprobs[0], together.top_logprobs[i])


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.99999])
def test_a_nucleus_is_that_of_the_whole_vocabulary_sorted(top_p: float) -> None:
    logits = np.random.default_rng(4).standard_normal((50, 100)).astype(np.float32)
    logits[::2] *= 6  # of these few are likely
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    ordered = np.sort(weights, axis=1)[:, ::-1]
    running = np.cumsum(ordered, axis=1)
    last = np.argmax(running >= np.float32(top_p) * running[:, -1:], axis=1)
    weights[weights < ordered[np.arange(50), last][:, None]] = 0
    shares = np.cumsum(weights, axis=1, dtype=np.float64)
    wanted = np.argmax(shares > (numbers(50) * shares[:, -1])[:, None], axis=1)
    assert np.array_equal(draw(logits, 1.0, top_p).tokens, wanted)


def test_a_certain_token_is_always_taken() -> None:
    logits = np.full((DRAWS, VOCAB), -200, np.float32)
    logits[:, 76] = 0
    assert (draw(logits).tokens == 76).all()
