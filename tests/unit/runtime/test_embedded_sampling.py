"""Sampling follows the distribution that temperature and top-p make, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marco_search.runtime.embedded.safetensors import Floats
from marco_search.runtime.embedded.sampling import TOP, Picks, pick, uniforms

VOCAB = 77
DRAWS = 20_000


def draw(
    logits: Floats, temperature: float = 1.0, top_p: float = 1.0, seed: int = 0, at: int = 0
) -> Picks:
    rows = len(logits)
    return pick(
        logits,
        np.full(rows, temperature, np.float32),
        np.full(rows, top_p, np.float32),
        np.arange(seed, seed + rows).astype(np.uint64),
        np.full(rows, at, np.uint64),
    )


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


@given(st.integers(0, 2**31 - 1), st.integers(0, 2**31))
def test_numbers_are_in_range_and_depend_on_both_keys(seed: int, counter: int) -> None:
    seeds = np.array([seed, seed, seed + 1], np.uint64)
    counters = np.array([counter, counter + 1, counter], np.uint64)
    numbers = uniforms(seeds, counters)
    assert ((numbers >= 0) & (numbers < 1)).all()
    assert len(set(numbers.tolist())) == 3


def test_numbers_are_uniform_along_seeds_and_along_counters() -> None:
    line, same = np.arange(DRAWS).astype(np.uint64), np.full(DRAWS, 5, np.uint64)
    for numbers in (uniforms(line, same), uniforms(same, line)):
        counts = np.histogram(numbers, 50, (0, 1))[0]
        assert ((counts - DRAWS / 50) ** 2 / (DRAWS / 50)).sum() < 100
        assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.03


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
        assert picks.top_ids[0].tolist() == np.argsort(-exact)[:TOP].tolist()
        assert picks.top_logprobs[0] == pytest.approx(np.sort(exact)[::-1][:TOP], abs=1e-5)


def test_a_rows_choice_does_not_depend_on_its_neighbours() -> None:
    rng = np.random.default_rng(2)
    logits = (rng.standard_normal((60, VOCAB)) * 3).astype(np.float32)
    temperatures = rng.choice([0, 0.7, 1], 60).astype(np.float32)
    top_ps = rng.choice([0.5, 1], 60).astype(np.float32)
    seeds, counters = np.arange(60).astype(np.uint64), np.arange(60).astype(np.uint64) % 7
    together = pick(logits, temperatures, top_ps, seeds, counters)
    for i in range(60):
        row = slice(i, i + 1)
        alone = pick(logits[row], temperatures[row], top_ps[row], seeds[row], counters[row])
        assert alone.tokens[0] == together.tokens[i]
        assert alone.logprobs[0] == together.logprobs[i]
        assert np.array_equal(alone.top_logprobs[0], together.top_logprobs[i])


def test_a_certain_token_is_always_taken() -> None:
    logits = np.full((DRAWS, VOCAB), -200, np.float32)
    logits[:, 76] = 0
    assert (draw(logits).tokens == 76).all()
