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
Numbers = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint64]
AHEAD = 64
"""Numbers that are made for a sequence at a time."""


@dataclass(frozen=True, slots=True)
class Picks:
    """One step's outcome, a row per sequence."""

    tokens: Ints  # [rows]
    logprobs: Floats  # [rows], of the chosen tokens
    top_ids: Ints  # [rows, TOP], best first; among equals the lower id first
    top_logprobs: Floats  # [rows, TOP]


class Manner:
    """How each of some rows is to be sampled; made once for many steps of the same rows.

    `temperatures` [rows] 0 is greedy; `top_ps` [rows] keeps the most probable candidates that
    reach it, after the temperature.
    """

    def __init__(self, temperatures: Floats, top_ps: Floats) -> None:
        self.greedy = np.flatnonzero(temperatures <= 0)
        self.heats = None if (temperatures == 1).all() else _column(temperatures)
        self.cut = np.flatnonzero((top_ps < 1) & (temperatures > 0))
        self.top_ps = _column(top_ps[self.cut])


def _column(temperatures: Floats) -> Floats:
    return np.where(temperatures > 0, temperatures, np.float32(1))[:, None]


def log_softmax_parts(logits: Floats) -> tuple[Floats, Floats, Floats]:
    """(logits less their maximum, the exponentials of that, log of their sum per row)."""
    shifted = logits - np.maximum.reduce(logits, axis=-1, keepdims=True)
    weights = np.exp(shifted)
    return shifted, weights, np.log(np.add.reduce(weights, axis=-1))


def pick(logits: Floats, manner: Manner, numbers: Numbers) -> Picks:
    """Choose one token per row of `logits` [rows, vocab]; `numbers` [rows] in [0, 1) decide."""
    shifted, weights, log_sum = log_softmax_parts(logits)
    rows = np.arange(len(logits))
    top_ids = _best(shifted)
    if manner.heats is not None:
        weights = np.exp(shifted / manner.heats)
    if manner.cut.size:
        _keep_nucleus(weights, manner.cut, manner.top_ps)
    running = np.cumsum(weights, axis=-1, dtype=np.float64)
    # Numbers end at 1 - 2^-32, so the target is below the total: some candidate passes it, and
    # the first that does has a weight of its own.
    target = numbers * running[:, -1]
    tokens = np.argmax(running > target[:, None], axis=-1)
    if manner.greedy.size:
        tokens[manner.greedy] = top_ids[manner.greedy, 0]
    return Picks(
        tokens,
        shifted[rows, tokens] - log_sum,
        top_ids,
        shifted[rows[:, None], top_ids] - log_sum[:, None],
    )


def numbers_for(seed: int, first: int) -> Numbers:
    """The numbers in [0, 1) of tokens first..first+63 of the sequence with this seed.

    Token t's number depends on (seed, t) alone: SplitMix64 (Steele et al., 2014) twice over.
    """
    golden = np.uint64(0x9E3779B97F4A7C15)
    counters = np.arange(first + 1, first + 1 + AHEAD).astype(np.uint64)
    key = _mix(np.array([seed], np.uint64) + golden)
    return (_mix(key + counters * golden) >> np.uint64(32)).astype(np.float64) * 2.0**-32


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
        best = left.argmax(axis=-1)
        ids[:, rank] = best
        left[rows, best] = -np.inf
    return ids


def _keep_nucleus(weights: Floats, cut: Ints, top_ps: Floats) -> None:
    """Zero, in place, what lies outside the nuclei of rows `cut`. Equals of the last one stay."""
    ordered = np.sort(weights[cut], axis=-1)[:, ::-1]
    running = np.cumsum(ordered, axis=-1)
    last = np.argmax(running >= top_ps * running[:, -1:], axis=-1)
    least = ordered[np.arange(cut.size), last]
    weights[cut] = np.where(weights[cut] < least[:, None], np.float32(0), weights[cut])
