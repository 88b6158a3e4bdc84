"""Keys and values stay within MARCO_EMBEDDED_CACHE_MIB, rows in flight included."""

from __future__ import annotations

import queue
from pathlib import Path

import numpy as np
import pytest

from marco_search.errors import BranchFailed
from marco_search.runtime.embedded.batch import Batch
from marco_search.runtime.embedded.engine import Engine
from marco_search.runtime.embedded.model import load_model
from marco_search.runtime.embedded.radix import RadixCache
from marco_search.runtime.embedded.requests import GenerationRequest, Ticket
from tests.tiny_model import write_model
from tests.unit.runtime.embedded_rig import WAIT_S, answer, engine_of, request

LIMIT = 1 << 20  # five rows of 512 tokens


class Watch(queue.SimpleQueue[int | None]):
    """A stream of tokens that notes at each, in the decoding thread, what memory is in use."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self.bytes: list[int] = []
        self.rows: list[int] = []

    def put(self, item: int | None, block: bool = True, timeout: float | None = None) -> None:
        slots, cache = self._batch._decoder.slots, self._batch.cache
        arrays = [array.nbytes for array in (*slots.keys, *slots.values)]
        self.bytes.append(sum(arrays) + cache.size_bytes)
        self.rows.append(len(self._batch.rows))


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
        expected = [answer(t) for t in [engine.submit(Ticket(r)) for r in mixed()]]
    with engine_of(folder, cache_bytes=LIMIT) as (_, engine):
        watches = [Watch(engine._batch) for _ in mixed()]
        asked = [engine.submit(Ticket(r, w)) for r, w in zip(mixed(), watches, strict=True)]
        found = [answer(t) for t in asked]
    for one, other in zip(found, expected, strict=True):
        assert (one.tokens, one.top_logprobs) == (other.tokens, other.top_logprobs)
    assert max(max(w.bytes) for w in watches) <= LIMIT
    assert 3 <= max(max(w.rows) for w in watches) <= 8, "several at once, and the others wait"


def test_what_never_fits_is_refused_and_the_others_go_on(folder: Path) -> None:
    with engine_of(folder, cache_bytes=100_000) as (_, engine):
        long = engine.submit(Ticket(request(range(200), 300))).wait(WAIT_S)
        assert isinstance(long, BranchFailed)
        assert "500 tokens (prompt and max_new_tokens)" in str(long)
        assert "MARCO_EMBEDDED_CACHE_MIB" in str(long)
        assert len(answer(engine.submit(Ticket(request(range(20), 30)))).tokens) == 30


def test_one_row_may_have_all_of_it_and_leaves_it_to_others(folder: Path) -> None:
    with engine_of(folder, cache_bytes=200_000) as (_, engine):
        short = [engine.submit(Ticket(request([i], 10))) for i in range(20)]
        long = engine.submit(Ticket(request([1, 2], 510)))
        later = [engine.submit(Ticket(request([i, 9], 10))) for i in range(20)]
        assert [len(answer(t).tokens) for t in (*short, long, *later)] == [10] * 20 + [510] + [
            10
        ] * 20


def test_a_prefix_stays_cached_beside_the_rows_that_share_it(folder: Path) -> None:
    with engine_of(folder, cache_bytes=LIMIT) as (_, engine):
        prefix = list(range(60))
        answer(engine.submit(Ticket(request(prefix, 0))))
        children = [engine.submit(Ticket(request(prefix, 100, seed=i))) for i in range(40)]
        assert {answer(c).cached_tokens for c in children} == {60}


def test_one_that_gave_up_does_not_hold_up_those_behind_it(folder: Path) -> None:
    model = load_model(folder)
    batch = Batch(model.decoder, RadixCache(LIMIT), model.tokenizer, (), 64)
    engine = Engine(batch)
    gone = Ticket(request([1], 511), cancelled=True)
    engine.submit(gone)
    assert len(answer(engine.submit(Ticket(request([2], 5)))).tokens) == 5
    engine.close()
