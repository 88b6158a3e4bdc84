"""Choosing the next token of every row at once, and the log-probabilities that go with it.

Log-probabilities are those of the model's own distribution, at temperature 1, whatever the
sampling temperature: a confidence then means the same at every temperature. (An SGLang server
gives them after the temperature unless RETURN_ORIGINAL_LOGPROB is set in its environment.)
Everything is computed row by row in fixed shapes, so a row's choice does not depend on its
neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from marco_search.runtime.embedded.linear import Floats, Ints
from marco_search.search.branches import TOP_K

PICKED_AT_ONCE = 1 << 17
"""Logits: `pick` makes copies, which of many more would not stay in cache."""

Uniforms = npt.NDArray[np.float64]
_Words = npt.NDArray[np.uint64]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Picks(NamedTuple):
    """One step's outcome, a row per sequence.

    tokens [rows] and their logprobs [rows]; top_ids and top_logprobs [rows, TOP_K], best first,
    among equals the lower id first.
    """

    tokens: Ints
    logprobs: Floats
    top_ids: Ints
    top_logprobs: Floats

    def by_row(self) -> Iterator[tuple[int, float, list[int], list[float]]]:
        """The four of each row, as plain numbers."""
        return zip(*(column.tolist() for column in self), strict=True)


def log_softmax_parts(logits: Floats) -> tuple[Floats, Floats, Floats]:
    """(logits less their maximum, the exponentials of that, log of their sum per row)."""
    shifted = logits - np.maximum.reduce(logits, axis=-1, keepdims=True)
    weights = np.exp(shifted)
    return shifted, weights, np.log(np.add.reduce(weights, axis=-1))


def pick(logits: Floats, temperatures: Floats, top_ps: Floats, uniforms: Uniforms) -> Picks:
    """Choose one token per row of `logits` [rows, vocab]; `uniforms` [rows] in [0, 1) decide.

    A temperature of 0 is greedy. A top_p below 1 keeps the most probable candidates that reach
    it, after the temperature.
    """
    shifted, weights, log_sum = log_softmax_parts(logits)
    rows = np.arange(len(logits))
    top_ids = _best(shifted)
    sampled = temperatures > 0
    if (temperatures != 1).any():
        weights = np.exp(shifted / np.where(sampled, temperatures, np.float32(1))[:, None])
    tokens = top_ids[:, 0].copy()
    for row in np.flatnonzero(sampled & (top_ps < 1)):
        tokens[row] = _draw_from_nucleus(weights[row], top_ps[row], uniforms[row])
    rest = sampled & (top_ps >= 1)
    if rest.any():
        tokens = np.where(rest, _draw(weights, uniforms), tokens)
    return Picks(
        tokens,
        shifted[rows, tokens] - log_sum,
        top_ids,
        shifted[rows[:, None], top_ids] - log_sum[:, None],
    )


def _draw(weights: Floats, uniforms: Any) -> Any:
    """Where the running sum of `weights` (its last axis) passes this share of its total."""
    running = np.cumsum(weights, axis=-1, dtype=np.float64)
    # Uniforms end at 1 - 2^-32, so the target is below the total: some candidate passes it, and
    # the first that does has a weight of its own.
    target = np.asarray(uniforms * running[..., -1])
    return np.argmax(running > target[..., None], axis=-1)


def uniforms(seed: int, count: int) -> Uniforms:
    """The numbers in [0, 1) that decide the first `count` tokens of the sequence with this seed.

    Token t's number depends on (seed, t) alone: SplitMix64 (Steele et al., 2014) twice over.
    """
    counters = np.arange(1, count + 1).astype(np.uint64)
    key = _mix(np.array([seed], np.uint64) + _GOLDEN)
    return (_mix(key + counters * _GOLDEN) >> np.uint64(32)).astype(np.float64) * 2.0**-32


def _mix(words: _Words) -> _Words:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _best(values: Floats) -> Ints:
    """Ids of the TOP_K largest of each row, largest first."""
    left = values.copy()
    rows = np.arange(len(values))
    ids = np.empty((len(values), min(TOP_K, values.shape[1])), np.int64)
    for rank in range(ids.shape[1]):
        ids[:, rank] = left.argmax(axis=-1)
        left[rows, ids[:, rank]] = -np.inf
    return ids


def _draw_from_nucleus(weights: Floats, top_p: Any, uniform: Any) -> Any:
    """A token of one row's nucleus, without sorting a whole vocabulary. Ties at its end stay."""
    total = np.add.reduce(weights)
    # All weights below this together are less than what a nucleus may leave out.
    likely = np.flatnonzero(weights >= total * (1 - top_p) / weights.size)
    ordered = np.sort(weights[likely])[::-1]
    last = np.searchsorted(np.cumsum(ordered), top_p * total)
    least = ordered[min(last, ordered.size - 1)]  # rounded otherwise, it may be out of reach
    kept = likely[weights[likely] >= least]
    return kept[_draw(weights[kept], uniform)]
