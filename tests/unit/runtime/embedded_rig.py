"""What the embedded engine's tests share: engines over a folder, and ways to ask them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from marco_search.runtime.embedded.batch import Batch
from marco_search.runtime.embedded.engine import Engine
from marco_search.runtime.embedded.model import LoadedModel, load_model
from marco_search.runtime.embedded.radix import RadixCache
from marco_search.runtime.embedded.requests import Completion, GenerationRequest, Ticket

WAIT_S = 120.0


@contextmanager
def engine_of(
    folder: Path, *, max_rows: int = 64, cache_bytes: int = 1 << 26
) -> Iterator[tuple[LoadedModel, Engine]]:
    """A loaded folder and a running engine over it."""
    model = load_model(folder)
    cache = RadixCache(cache_bytes)
    batch = Batch(model.decoder, cache, model.tokenizer, model.config.eos_ids, max_rows)
    engine = Engine(batch)
    try:
        yield model, engine
    finally:
        engine.close()


def request(ids: Sequence[int], tokens: int, **options: object) -> GenerationRequest:
    """A request for `tokens` tokens after `ids`; the end of sequence does not end it."""
    settings: dict[str, object] = {"ignore_eos": True, **options}
    return GenerationRequest(
        ids=np.array(ids, np.int32),
        max_new_tokens=tokens,
        **settings,  # type: ignore[arg-type]
    )


def answer(ticket: Ticket) -> Completion:
    """The completion of a ticket that must not fail."""
    outcome = ticket.wait(WAIT_S)
    assert isinstance(outcome, Completion), outcome
    return outcome
