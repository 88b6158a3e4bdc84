"""Keys and values stay within MARCO_EMBEDDED_CACHE_MIB, rows in flight included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from marco_search.errors import BranchFailed
from marco_search.runtime.embedded.batch import Batch, GenerationRequest
from tests.tiny_model import write_model
from tests.unit.runtime.embedded_rig import answer, engine_of, failure, request

LIMIT = 1 << 20  # five rows of 512 tokens


class Watch:
    """Notes at each step, in the decoding thread, what memory is in use."""

    def __init__(self) -> None:
        self.bytes: list[int] = []
        self.rows: list[int] = []

    def __call__(self, batch: Batch) -> None:
        slots, cache = batch._decoder.slots, batch.cache
        arrays = [array.nbytes for array in (*slots.keys, *slots.values)]
        self.bytes.append(sum(arrays) + cache.size_bytes)
        self.rows.append(len(batch.rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "m")


def mixed() -> list[GenerationRequest]:
    """Short and long ones that share some prefixes, every fourth to the end of the context."""
    rng = np.random.default_rng(3)
    made = []
    for i in range(24):
        prompt = [*range(rng.integers(1, 60)), *rng.integers(0, 300, 5).tolist()]
        tokens = 512 - len(prompt) if i % 4 == 0 else 20
        made.append(request(prompt, tokens, seed=i))
    return made


def test_the_limit_is_kept_and_changes_no_bit(folder: Path) -> None:
    with engine_of(folder) as (_, engine):
        expected = [answer(t) for t in [engine.submit(r) for r in mixed()]]
    watch = Watch()
    with engine_of(folder, cache_bytes=LIMIT, on_step=watch) as (_, engine):
        found = [answer(t) for t in [engine.submit(r) for r in mixed()]]
    for one, other in zip(found, expected, strict=True):
        assert (one.tokens, one.top_logprobs) == (other.tokens, other.top_logprobs)
    assert max(watch.bytes) <= LIMIT
    assert 3 <= max(watch.rows) <= 8, "several at once, and the others wait"


def test_what_never_fits_is_refused_and_the_others_go_on(folder: Path) -> None:
    with engine_of(folder, cache_bytes=100_000) as (_, engine):
        long = failure(engine.submit(request(range(200), 300)))
        assert isinstance(long, BranchFailed)
        assert "500 tokens (prompt and max_new_tokens)" in str(long)
        assert "MARCO_EMBEDDED_CACHE_MIB" in str(long)
        assert len(answer(engine.submit(request(range(20), 30))).tokens) == 30


def test_one_row_may_have_all_of_it_and_leaves_it_to_others(folder: Path) -> None:
    with engine_of(folder, cache_bytes=200_000) as (_, engine):
        short = [engine.submit(request([i], 10)) for i in range(20)]
        long = engine.submit(request([1, 2], 510))
        later = [engine.submit(request([i, 9], 10)) for i in range(20)]
        assert [len(answer(t).tokens) for t in (*short, long, *later)] == [10] * 20 + [510] + [
            10
        ] * 20


def test_a_prefix_stays_cached_beside_the_rows_that_share_it(folder: Path) -> None:
    with engine_of(folder, cache_bytes=LIMIT) as (_, engine):
        prefix = list(range(60))
        answer(engine.submit(request(prefix, 0)))
        children = [engine.submit(request(prefix, 100, seed=i)) for i in range(40)]
        assert {answer(c).cached_tokens for c in children} == {60}


def test_a_cancelled_request_does_not_hold_up_those_behind_it(folder: Path) -> None:
    with engine_of(folder, cache_bytes=LIMIT) as (_, engine):
        busy = engine.submit(request([1], 511))
        cancelled = [engine.submit(request([i], 511)) for i in range(20)]
        last = engine.submit(request([2], 5))
        for future in cancelled:
            future.cancel()
        assert len(answer(last).tokens) == 5
        assert len(answer(busy).tokens) == 511
