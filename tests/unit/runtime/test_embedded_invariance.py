"""The same request gives the same bits, whatever else the engine is doing.

Not with what it is batched, not when it arrives, not whether its prefix was prefilled, decoded
or cached: nothing may move the last bit of a log-prob, or a replay would not be one.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from marco_search.pocket import MODEL_DIR
from marco_search.runtime.embedded import linear as linear_module
from marco_search.runtime.embedded.batch import GenerationRequest, Row
from marco_search.runtime.embedded.linear import SINGLE, Linear, Team, choose_mode
from tests.tiny_model import write_model
from tests.unit.runtime.embedded_rig import answer, engine_of, flush_cache, request

ROOT = Path(__file__).resolve().parents[3]


def some_requests(vocab: int, count: int, *, longest: int) -> list[GenerationRequest]:
    """Requests that share prefixes of all lengths, at several temperatures."""
    rng = np.random.default_rng(5)
    trunk = rng.integers(0, vocab, longest)
    made = []
    for i in range(count):
        ids = trunk[: rng.integers(1, longest)]
        if i % 3 == 0:
            ids = np.concatenate([ids, rng.integers(0, vocab, rng.integers(1, 40))])
        made.append(
            request(
                ids.tolist(),
                int(rng.integers(1, 24)),
                temperature=float(rng.choice([0.0, 0.8, 1.0])),
                top_p=float(rng.choice([0.9, 1.0])),
                seed=i,
            )
        )
    return made


def assert_equal(found: list[Row], expected: list[Row]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.tokens == b.tokens
        assert a.logprobs == b.logprobs  # to the last bit
        assert a.top_ids == b.top_ids
        assert a.top_logprobs == b.top_logprobs


@pytest.mark.parametrize("which", ["pocket", "tiny", "one head", "as if large"])
def test_a_request_alone_and_in_any_company_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    folder = MODEL_DIR
    if which == "as if large":
        monkeypatch.setattr(linear_module, "_LARGE_BYTES", 0)
    if which != "pocket":
        heads = 1 if which == "one head" else 4
        folder = write_model(tmp_path / "m", heads=heads, kv_heads=min(heads, 2))
    with engine_of(folder) as (model, engine):
        asked = some_requests(model.config.vocab, 20 if which == "pocket" else 40, longest=150)
        alone = []
        for r in asked:
            flush_cache(engine)
            alone.append(answer(engine.submit(r)))
        assert all(c.cached_tokens == 0 for c in alone)
        flush_cache(engine)
        together = [answer(t) for t in [engine.submit(r) for r in asked]]
        assert_equal(together, alone)
        cached = [answer(engine.submit(r)) for r in asked]
        assert sum(c.cached_tokens for c in cached) > 0.9 * sum(c.prompt_tokens for c in cached)
        assert_equal(cached, alone)
    with engine_of(folder, threads=3, max_rows=5, cache_bytes=2_000_000) as (_, engine):
        # Memory for three or four rows and a cache that has to evict; callers come at times of
        # their own.
        found: dict[int, Row] = {}

        def call(first: int) -> None:
            for i in range(first, len(asked), 8):
                found[i] = answer(engine.submit(asked[i]))

        callers = [threading.Thread(target=call, args=(n,)) for n in range(8)]
        for c in callers:
            c.start()
        for c in callers:
            c.join()
        assert_equal([found[i] for i in range(len(asked))], alone)


def test_what_was_decoded_serves_as_prefix_like_what_was_prefilled(tmp_path: Path) -> None:
    with engine_of(write_model(tmp_path / "m")) as (_, engine):
        first = answer(engine.submit(request(range(70), 100)))
        longer = [*range(70), *first.tokens]
        for cut in (71, 128, 130, 169):
            on_decoded = answer(engine.submit(request(longer[:cut], 20, seed=7)))
            assert on_decoded.cached_tokens >= cut - 1
            flush_cache(engine)
            on_prefilled = answer(engine.submit(request(longer[:cut], 20, seed=7)))
            assert on_prefilled.cached_tokens == 0
            assert_equal([on_decoded], [on_prefilled])
            answer(engine.submit(request(range(70), 100)))


@pytest.mark.parametrize(
    "shape", [(48, 96), (80, 48), (192, 768), (512, 192), (700, 33), (1900, 330)]
)
@pytest.mark.parametrize("large", [False, True])
def test_the_chosen_mode_is_invariant(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], large: bool
) -> None:
    if large:
        monkeypatch.setattr(linear_module, "_LARGE_BYTES", 0)
    rng = np.random.default_rng(1)
    weight = rng.standard_normal(shape, dtype=np.float32)
    linear = Linear(weight)
    mode, team = choose_mode([linear], Team(2))
    assert team.threads == (2 if large else 1)
    x = mode.pad(rng.standard_normal((150, shape[0]), dtype=np.float32))
    whole = linear(x)
    assert np.allclose(whole, x @ weight, rtol=1e-4, atol=1e-3)
    for rows in (1, 2, 3, 7, 9, 16, 17, 31, 33, 64, 100, 149):
        order = rng.permutation(len(x))[: len(mode.pad(x[:rows]))]
        assert np.array_equal(linear(x[order]), whole[order])


def test_single_rows_are_always_right() -> None:
    linear = Linear(np.eye(3, 4, dtype=np.float32))
    assert linear.mode is SINGLE
    assert linear(np.ones((2, 3), np.float32)).tolist() == [[1, 1, 1, 0]] * 2


def _digest(folder: Path) -> str:
    """A hash over completions made alone and together; fails if the two differ."""
    with engine_of(folder) as (model, engine):
        asked = some_requests(model.config.vocab, 12, longest=80)
        alone = [answer(engine.submit(r)) for r in asked]
        flush_cache(engine)
        together = [answer(t) for t in [engine.submit(r) for r in asked]]
        assert_equal(together, alone)
    return hashlib.sha256(repr([(c.tokens, c.top_logprobs) for c in alone]).encode()).hexdigest()


def has_avx2() -> bool:
    try:
        return " avx2 " in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False


@pytest.mark.skipif(not has_avx2(), reason="this processor has no AVX2")
@pytest.mark.parametrize("core", ["Haswell", "Nehalem"])
def test_it_holds_on_older_processors_too(core: str) -> None:
    """OpenBLAS runs the code that it has for another processor."""
    environment = {
        **os.environ,
        "OPENBLAS_CORETYPE": core,
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    code = f"from {__name__} import _digest; from pathlib import Path; "
    code += f"print(_digest(Path({str(MODEL_DIR)!r})))"
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=150,
        ).stdout
        for _ in range(2)
    }
    assert len(digests) == 1, "another run gives the same bits"
