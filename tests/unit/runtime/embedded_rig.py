"""What the embedded engine's tests share: engines over a folder, and ways to ask them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from marco_search.errors import RuntimeFailure
from marco_search.runtime.embedded.backend import LoadedModel, load_model
from marco_search.runtime.embedded.batch import Batch, GenerationRequest, Row
from marco_search.runtime.embedded.cache import RadixCache
from marco_search.runtime.embedded.engine import Engine

WAIT_S = 120.0


@contextmanager
def engine_of(
    folder: Path,
    *,
    threads: int = 1,
    max_rows: int = 64,
    cache_bytes: int = 1 << 26,
    on_step: Callable[[Batch], None] = lambda batch: None,
) -> Iterator[tuple[LoadedModel, Engine]]:
    """A loaded folder and a running engine over it. `on_step` runs in the decoding thread."""
    model = load_model(folder, threads)

    class Watched(Batch):
        def step(self) -> None:
            on_step(self)
            super().step()
            on_step(self)

    engine = Engine(Watched(model.decoder, RadixCache(cache_bytes), model.tokenizer, max_rows))
    try:
        yield model, engine
    finally:
        engine.close()


def request(ids: Sequence[int], tokens: int, **options: object) -> GenerationRequest:
    """A request for `tokens` tokens after `ids`; the end of sequence does not end it."""
    return GenerationRequest(
        ids=np.array(ids, np.int32),
        max_new_tokens=tokens,
        **options,  # type: ignore[arg-type]
    )


def failure(row: Row) -> RuntimeFailure:
    """The failure of a request that must not succeed."""
    found = row.exception(WAIT_S)
    assert isinstance(found, RuntimeFailure), found
    return found


def answer(row: Row) -> Row:
    """The row of a request that must not fail, when it is done."""
    row.result(WAIT_S)
    return row


def flush_cache(engine: Engine) -> None:
    """Forget all cached prefixes of an engine that has nothing to do."""
    engine._batch.cache.clear()
