"""Endless, reproducible training batches: encoded samples grouped by length."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from ops.pocket.samples import Sample, draw_sample
from ops.pocket.tokenizer import END_OF_TURN, PADDING, token_id, user_prompt

POOL = 512


@dataclass(frozen=True)
class Batch:
    """ids [rows, length] right-padded; learned [rows, length] marks the tokens in the loss."""

    ids: Tensor
    learned: Tensor
    tokens: int


def encode_sample(tokenizer: Tokenizer, sample: Sample) -> tuple[list[int], list[bool]]:
    """Token ids of the whole conversation, and which of them count in the loss."""
    ids = tokenizer.encode(user_prompt(sample.user)).ids
    learned = [False] * len(ids)
    for segment in sample.segments:
        part = tokenizer.encode(segment.text).ids
        ids += part
        learned += [segment.learned] * len(part)
    return [*ids, token_id(tokenizer, END_OF_TURN)], [*learned, True]


def batches(tokenizer: Tokenizer, seed: int, rank: int, tokens: int) -> Iterator[Batch]:
    """Batches of at most about `tokens` tokens with padding.

    Samples come in pools, sorted by length within a pool so that little is padded. Each rank has
    its own stream.
    """
    padding = token_id(tokenizer, PADDING)
    rng = random.Random(f"pocket/{seed}/{rank}")
    while True:
        pool = [encode_sample(tokenizer, draw_sample(rng)) for _ in range(POOL)]
        pool.sort(key=lambda item: len(item[0]))
        groups: list[list[tuple[list[int], list[bool]]]] = [[]]
        for item in pool:
            if groups[-1] and (len(groups[-1]) + 1) * len(item[0]) > tokens:
                groups.append([])
            groups[-1].append(item)
        # The last group of a pool is often small; a full one keeps the steps alike.
        if len(groups[-1]) * len(groups[-1][-1][0]) < tokens // 2 and len(groups) > 1:
            groups.pop()
        rng.shuffle(groups)
        for group in groups:
            yield _pad(group, padding)


def _pad(group: list[tuple[list[int], list[bool]]], padding: int) -> Batch:
    length = max(len(ids) for ids, _ in group)
    ids = torch.full((len(group), length), padding)
    learned = torch.zeros(len(group), length, dtype=torch.bool)
    for row, (row_ids, row_learned) in enumerate(group):
        ids[row, : len(row_ids)] = torch.tensor(row_ids)
        learned[row, : len(row_ids)] = torch.tensor(row_learned)
    return Batch(ids, learned, sum(len(row_ids) for row_ids, _ in group))
