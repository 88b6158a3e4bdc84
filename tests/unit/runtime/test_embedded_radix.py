"""The prefix cache: what went in comes out, for the longest prefix, within its budget."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from marco_search.runtime.embedded.cache import Match, RadixCache
from marco_search.runtime.embedded.linear import Floats
from marco_search.runtime.embedded.tokenizer import TokenIds

LAYERS, HEADS, WIDTH = 2, 1, 3
BIG = 1 << 24
sequences = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=25)


def content(ids: TokenIds) -> Floats:
    """What a model would compute: at every position a value made of all tokens up to it."""
    hashes = [hash(tuple(ids[: i + 1].tolist())) % 9973 for i in range(len(ids))]
    return np.array(hashes, np.float32)


def insert(cache: RadixCache, ids: TokenIds, logits: Floats | None = None) -> None:
    def fetch(start: int, end: int) -> Floats:
        values = content(ids)[start:end, None, None]
        return np.broadcast_to(values, (2, LAYERS, end - start, HEADS, WIDTH)).copy()

    cache.insert(ids, fetch, logits)


def read(cache: RadixCache, match: Match, length: int) -> Floats:
    out = np.full(length, -1, np.float32)
    for start, kv in match.pieces(length):
        assert np.array_equal(kv[0], kv[1])
        out[start : start + kv.shape[2]] = kv[0, 0, :, 0, 0]
    return out


def array(ids: list[int]) -> TokenIds:
    return np.array(ids, np.int32)


def shared(a: list[int], b: list[int]) -> int:
    same = [x == y for x, y in zip(a, b, strict=False)]
    return same.index(False) if False in same else len(same)


@given(sequences, sequences)
def test_a_match_is_the_longest_prefix_of_anything_inserted(
    kept: list[list[int]], asked: list[list[int]]
) -> None:
    cache = RadixCache(BIG)
    for ids in kept:
        insert(cache, array(ids))
    for ids in kept + asked:
        match = cache.match(array(ids))
        assert match.length == max(shared(ids, other) for other in kept)
        for length in range(match.length + 1):
            assert np.array_equal(read(cache, match, length), content(array(ids))[:length])


@given(sequences)
def test_a_shared_prefix_is_stored_once(kept: list[list[int]]) -> None:
    cache = RadixCache(BIG)
    for ids in kept:
        insert(cache, array(ids))
    prefixes = {tuple(ids[: i + 1]) for ids in kept for i in range(len(ids))}
    per_token = 4 + 2 * LAYERS * HEADS * WIDTH * 4
    overhead = 512 * 2 * len(kept)  # an insertion makes two nodes at most
    assert cache.size_bytes <= len(prefixes) * per_token + overhead
    size = cache.size_bytes
    for ids in kept:
        insert(cache, array(ids))
    assert cache.size_bytes == size


@given(sequences, st.integers(0, 8000))
def test_the_budget_holds_and_what_is_left_is_right(kept: list[list[int]], budget: int) -> None:
    cache = RadixCache(budget)
    for ids in kept:
        insert(cache, array(ids), np.zeros(7, np.float32))
        assert 0 <= cache.size_bytes <= budget
    for ids in kept:
        match = cache.match(array(ids))
        expected = content(array(ids))[: match.length]
        assert np.array_equal(read(cache, match, match.length), expected)


@given(sequences, st.integers(0, 8000))
def test_a_budget_that_shrinks_holds_at_once(kept: list[list[int]], budget: int) -> None:
    cache = RadixCache(BIG)
    for ids in kept:
        insert(cache, array(ids))
    cache.limit(budget)
    assert 0 <= cache.size_bytes <= budget
    for ids in kept:
        match = cache.match(array(ids))
        assert np.array_equal(read(cache, match, match.length), content(array(ids))[: match.length])


def test_the_least_recently_used_goes_first() -> None:
    cache = RadixCache(BIG)
    for first in (1, 2, 3):
        insert(cache, array([first, 0, 0]))
    cache.match(array([1, 0, 0]))
    cache.budget_bytes = cache.size_bytes
    insert(cache, array([4, 0, 0]))
    lengths = [cache.match(array([first, 0, 0])).length for first in (1, 2, 3, 4)]
    assert lengths[0] == lengths[3] == 3
    assert lengths[1] == 0


def test_logits_are_given_for_exactly_the_sequence_they_follow() -> None:
    cache = RadixCache(BIG)
    logits = np.arange(5, dtype=np.float32)
    insert(cache, array([1, 2, 3, 4]))
    insert(cache, array([1, 2]), logits)
    assert cache.match(array([1, 2, 3])).logits is None
    assert cache.match(array([1])).logits is None
    found = cache.match(array([1, 2])).logits
    assert found is not None
    assert np.array_equal(found, logits)
    insert(cache, array([1, 5]))
    assert cache.match(array([1, 2])).logits is not None
    cache.clear()
    assert cache.match(array([1, 2])).length == 0
