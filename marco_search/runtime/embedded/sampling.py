"""Choosing the next token of every row at once, and the log-probabilities that go with it.

Log-probabilities are those of the model's own distribution, at temperature 1, whatever the
sampling temperature: a confidence then means the same at every temperature. (An SGLang server
gives them after the temperature unless RETURN_ORIGINAL_LOGPROB is set in its environment.)
Everything is computed row by row in fixed shapes, so a row's choice does not depend on its
neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from marco_search.runtime.embedded.safetensors import Floats

TOP = 5
"""Log-probabilities kept per position besides the chosen token's (Marco-o1, section 4)."""

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
_BLOCK = 32  # candidates that are summed before the running sum is searched


@dataclass(frozen=True, slots=True)
class Picks:
    """One step's outcome, a row per sequence."""

    tokens: Ints  # [rows]
    logprobs: Floats  # [rows], of the chosen tokens
    top_ids: Ints  # [rows, TOP], best first; among equals the lower id first
    top_logprobs: Floats  # [rows, TOP]


def log_softmax_parts(logits: Floats) -> tuple[Floats, Floats, Floats]:
    """(logits less their maximum, the exponentials of that, log of their sum per row)."""
    shifted = logits - np.maximum.reduce(logits, axis=-1, keepdims=True)
    weights = np.exp(shifted)
    return shifted, weights, np.log(np.add.reduce(weights, axis=-1))


def pick(
    logits: Floats, temperatures: Floats, top_ps: Floats, seeds: Words, counters: Words
) -> Picks:
    """Sample one token per row of `logits` [rows, vocab].

    `temperatures` 0 is greedy; `top_ps` keeps the most probable candidates that reach it,
    after the temperature. Token number `counters` of a sequence depends only on its logits,
    `seeds` and that number.
    """
    shifted, weights, log_sum = log_softmax_parts(logits)
    rows = np.arange(len(logits))
    top_ids = _best(shifted)
    tokens = top_ids[:, 0].copy()
    sampled = np.flatnonzero(temperatures > 0)
    if sampled.size:
        heats = temperatures[sampled]
        if sampled.size < len(rows) or (heats != 1).any():
            weights = np.exp(shifted[sampled] / heats[:, None])
        _keep_nucleus(weights, top_ps[sampled])
        tokens[sampled] = _draw(weights, uniforms(seeds[sampled], counters[sampled]))
    return Picks(
        tokens,
        shifted[rows, tokens] - log_sum,
        top_ids,
        shifted[rows[:, None], top_ids] - log_sum[:, None],
    )


def uniforms(seeds: Words, counters: Words) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for each (seed, counter): SplitMix64 (Steele et al., 2014), keyed."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    words = _mix(_mix(seeds + golden) + (counters + np.uint64(1)) * golden)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(words: Words) -> Words:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _best(values: Floats) -> Ints:
    """Ids of the TOP largest of each row, largest first."""
    left = values.copy()
    rows = np.arange(len(values))
    ids = np.empty((len(values), min(TOP, values.shape[1])), np.int64)
    for rank in range(ids.shape[1]):
        ids[:, rank] = left.argmax(axis=-1)
        left[rows, ids[:, rank]] = -np.inf
    return ids


def _keep_nucleus(weights: Floats, top_ps: Floats) -> None:
    """Zero, in place, what lies outside each row's nucleus. Equals of its last one stay."""
    cut = np.flatnonzero(top_ps < 1)
    if cut.size:
        ordered = np.sort(weights[cut], axis=-1)[:, ::-1]
        running = np.cumsum(ordered, axis=-1)
        last = np.argmax(running >= top_ps[cut, None] * running[:, -1:], axis=-1)
        least = ordered[np.arange(cut.size), last]
        weights[cut] = np.where(weights[cut] < least[:, None], np.float32(0), weights[cut])


def _draw(weights: Floats, numbers: npt.NDArray[np.float64]) -> Ints:
    """The candidate at which each row's running sum passes its number's share of the total."""
    rows, vocab = weights.shape
    blocks = -(-vocab // _BLOCK)
    if blocks * _BLOCK != vocab:
        weights = np.pad(weights, ((0, 0), (0, blocks * _BLOCK - vocab)))
    grouped = weights.reshape(rows, blocks, _BLOCK)
    running = np.cumsum(np.add.reduce(grouped, axis=-1), axis=-1, dtype=np.float64)
    target = numbers * running[:, -1]
    block = _first_above(running, target)
    index = np.arange(rows)
    before = np.where(block > 0, running[index, block - 1], 0.0)
    inside = np.cumsum(grouped[index, block], axis=-1, dtype=np.float64)
    return block * _BLOCK + _first_above(inside, target - before)


def _first_above(running: npt.NDArray[np.float64], target: npt.NDArray[np.float64]) -> Ints:
    """First index whose running sum exceeds the target; never one that adds nothing."""
    past = np.add.reduce(running <= target[:, None], axis=-1, dtype=np.int64)
    # Rounding may put the target at the very end: then the last one that adds something.
    found: Ints = np.minimum(past, np.argmax(running >= running[:, -1:], axis=-1))
    return found
