"""SGLang's frontend language on the embedded engine."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sglang as sgl

from marco_search.runtime.embedded.backend import EmbeddedBackend, LoadedModel, load_model
from marco_search.runtime.program import PARAMS, BranchParams, ForkRuntime
from marco_search.runtime.reply import read_completion
from marco_search.search.branches import BranchRequest, Expansion, Finish, ReflectionPlacement
from tests.tiny_model import write_model
from tests.unit.runtime.embedded_rig import flush_cache

ROOT = Path(__file__).resolve().parents[3]
PROMPT = "<|im_start|>user\nTom has 3 apples.<|im_end|>\n<Thought>"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(write_model(tmp_path_factory.mktemp("model") / "m", context=400))


@pytest.fixture
def backend(model: LoadedModel) -> Iterator[EmbeddedBackend]:
    endless = dataclasses.replace(model.config, eos_ids=())
    model = dataclasses.replace(model, config=endless)
    opened = EmbeddedBackend(model, max_rows=32, cache_bytes=1 << 24)
    yield opened
    opened.shutdown()


@sgl.function  # type: ignore[untyped-decorator]
def complete(s: Any, prompt: str, seed: int, options: dict[str, Any]) -> None:
    s += prompt
    deadline = time.monotonic() + 120
    s.set_var(PARAMS, BranchParams(seed=seed, rid="r", deadline=deadline, parts=(prompt,)))
    s += sgl.gen("out", **options)


def run(
    backend: EmbeddedBackend, prompt: str = PROMPT, seed: int = 1, **options: Any
) -> tuple[str, dict[str, Any]]:
    asked = {"max_tokens": 20, "temperature": 1.0, **options}
    state = complete.run(prompt=prompt, seed=seed, options=asked, backend=backend)
    return state["out"], state.get_meta_info("out")


def expansion(branches: int, *, tokens: int = 30, prefix: str = PROMPT) -> Expansion:
    requests = tuple(
        BranchRequest(branch_id=i, seed=i, max_new_tokens=tokens, temperature=1.0)
        for i in range(branches)
    )
    return Expansion(node_id=0, prefix=prefix, branches=requests)


def test_meta_info_has_sglangs_keys_and_shapes(backend: EmbeddedBackend) -> None:
    text, meta = run(backend)
    assert meta["finish_reason"] == {"type": "length", "length": 20}
    assert meta["prompt_tokens"] == len(backend.model.tokenizer.encode(PROMPT))
    assert meta["completion_tokens"] == 20
    assert meta["cached_tokens"] == 0
    assert meta["e2e_latency"] > 0
    assert "".join(piece for _, _, piece in meta["output_token_logprobs"]) == text
    for (logprob, token, _), top in zip(
        meta["output_token_logprobs"], meta["output_top_logprobs"], strict=True
    ):
        assert [entry[0] for entry in top] == sorted((e[0] for e in top), reverse=True)
        assert len(top) == 5
        assert logprob <= top[0][0] <= 0
        assert {e[1]: e[0] for e in top}.get(token, logprob) == logprob


def test_opening_is_lazy_and_leaves_the_environment_alone() -> None:
    code = (
        "import sys, marco_search.runtime, os\n"
        "assert not {'numpy', 'sglang', 'requests'} & set(sys.modules)\n"
        "from marco_search.settings import Settings\n"
        "runtime = marco_search.runtime.open_runtime(Settings())\n"
        "assert 'OPENBLAS_NUM_THREADS' not in os.environ\n"
        "assert runtime.info.name == 'embedded' and len(runtime.info.revision) == 64\n"
        "runtime.close()\n"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MARCO_", "OPENBLAS"))}
    subprocess.run([sys.executable, "-c", code], check=True, env=clean, cwd=ROOT, timeout=120)


def test_the_seed_makes_the_text(backend: EmbeddedBackend) -> None:
    texts = [run(backend, seed=seed)[0] for seed in (1, 2, 3, 1, 2, 3)]
    assert texts[:3] == texts[3:]
    assert len(set(texts)) == 3
    assert len({run(backend, seed=seed, temperature=0.0)[0] for seed in (1, 2, 3)}) == 1


def test_a_stop_string_ends_the_text_and_its_tokens_are_given(backend: EmbeddedBackend) -> None:
    whole, _ = run(backend, seed=5, max_tokens=200)
    tried = 0
    for length in (1, 2, 5):
        for at in range(0, min(len(whole), 120) - length, 4):
            stop = whole[at : at + length]
            if "\ufffd" in stop:
                continue
            tried += 1
            text, meta = run(backend, seed=5, max_tokens=200, stop=[stop, "\0!"])
            assert text == whole[: whole.find(stop)]
            assert meta["finish_reason"] == {"type": "stop", "matched": stop}
            pieces = "".join(p for _, _, p in meta["output_token_logprobs"])
            assert pieces.startswith(text + stop)
            tokens = read_completion(text, meta, stops=[stop]).tokens
            assert "".join(t.text for t in tokens) == pieces
    assert tried > 10


def test_the_end_of_sequence_stops_and_has_no_text(model: LoadedModel, tmp_path: Path) -> None:
    other = load_model(write_model(tmp_path / "m"))
    one = EmbeddedBackend(other, max_rows=4, cache_bytes=1 << 20)
    _, meta = run(one, temperature=0.0)
    one.shutdown()
    eos = meta["output_token_logprobs"][7][1]
    other.tokenizer.token_bytes[eos] = b""  # as a special token has it
    config = dataclasses.replace(other.config, eos_ids=(0, eos))
    other = dataclasses.replace(other, config=config)
    one = EmbeddedBackend(other, max_rows=4, cache_bytes=1 << 20)
    text, meta = run(one, temperature=0.0)
    assert meta["finish_reason"] == {"type": "stop", "matched": eos}
    assert meta["output_token_logprobs"][-1][1:] == [eos, ""]
    assert meta["completion_tokens"] <= 8
    tokens = read_completion(text, meta).tokens
    assert tokens[-1].text == ""
    assert "".join(t.text for t in tokens) == text
    one.shutdown()


def test_a_forks_children_share_its_prefix(backend: EmbeddedBackend) -> None:
    runtime = ForkRuntime(backend, _info(backend), None, timeout_s=120)
    prefix = PROMPT + "Step 1: 3+12=15. 第1步"
    branches = runtime.branch([expansion(6, prefix=prefix)])
    count = len(backend.model.tokenizer.encode(prefix))
    assert [(b.prompt_tokens, b.cached_tokens) for b in branches] == [(count, count)] * 6
    assert all(b.finish is not Finish.FAILED for b in branches)
    again = runtime.branch([expansion(6, prefix=prefix), expansion(6, prefix=prefix + "x")])
    assert again[:6] == branches


def test_a_fork_goes_on_from_the_tokens_that_are_kept(backend: EmbeddedBackend) -> None:
    """Also where the text would be tokenised otherwise: here a token for each character."""
    runtime = ForkRuntime(backend, _info(backend), None, timeout_s=120)
    text = "Step 1: 3+12=15. "
    ids = tuple(int(i) for character in text for i in backend.model.tokenizer.encode(character))
    assert len(ids) > len(backend.model.tokenizer.encode(text))
    kept = dataclasses.replace(expansion(2, prefix=PROMPT + text), parts=(PROMPT, ids))
    count = len(backend.model.tokenizer.encode(PROMPT)) + len(ids)
    found = runtime.branch([kept])
    assert [(b.prompt_tokens, b.cached_tokens) for b in found] == [(count, count)] * 2
    (as_text, _) = runtime.branch([expansion(2, prefix=PROMPT + text)])
    assert as_text.prompt_tokens == len(backend.model.tokenizer.encode(PROMPT + text))


def test_a_search_round_is_the_same_in_any_order_and_company(backend: EmbeddedBackend) -> None:
    runtime = ForkRuntime(backend, _info(backend), None, timeout_s=120)
    whole = runtime.branch([expansion(4, prefix=PROMPT + str(i)) for i in range(4)])
    flush_cache(backend.engine)
    apart = [
        runtime.branch([Expansion(node_id=0, prefix=PROMPT + str(i), branches=(request,))])[0]
        for i in reversed(range(4))
        for request in reversed(expansion(4).branches)
    ]
    assert [b.segments for b in whole] == [b.segments for b in reversed(apart)]


def test_reflection_goes_on_from_the_text_it_was_put_into(backend: EmbeddedBackend) -> None:
    runtime = ForkRuntime(backend, _info(backend), None, timeout_s=120)
    request = BranchRequest(
        branch_id=0, seed=3, max_new_tokens=10, temperature=1.0, reflect=ReflectionPlacement.FIRST
    )
    (branch,) = runtime.branch([Expansion(node_id=0, prefix=PROMPT, branches=(request,))])
    phrase, made = branch.segments
    plain = BranchRequest(branch_id=0, seed=3, max_new_tokens=10, temperature=1.0)
    (same,) = runtime.branch([Expansion(node_id=0, prefix=PROMPT + phrase.text, branches=(plain,))])
    assert same.segments == (made,)


def test_every_piece_of_chinese_text_is_whole_characters(model: LoadedModel) -> None:
    text = "第1步：小明有3个苹果，又买了12个🍎，所以3+12=15。</Thought>好"
    pieces = model.tokenizer.pieces(model.tokenizer.encode(text).tolist())
    assert "".join(pieces) == text
    assert "" in pieces
    assert all("\ufffd" not in piece for piece in pieces)


def test_a_prompt_that_fills_the_context_is_refused(backend: EmbeddedBackend) -> None:
    runtime = ForkRuntime(backend, _info(backend), None, timeout_s=120)
    long = "a\n" * 300
    branches = runtime.branch([expansion(1), expansion(1, prefix=long)])
    assert [b.finish is Finish.FAILED for b in branches] == [False, True]
    assert str(branches[1].error).startswith("PromptTooLong: ") and "400" in str(branches[1].error)
    _, meta = run(backend, prompt="")
    assert "empty" in meta["error"]
    ids = backend.model.tokenizer.encode(long)[:395]
    text = "".join(backend.model.tokenizer.pieces(ids.tolist()))
    _, meta = run(backend, prompt=text, max_tokens=100)
    room = 400 - len(backend.model.tokenizer.encode(text))
    assert meta["finish_reason"] == {"type": "length", "length": room}


def test_a_closed_backend_fails_and_does_not_hang(backend: EmbeddedBackend) -> None:
    backend.shutdown()
    text, meta = run(backend)
    assert (text, meta["error_type"]) == ("", "RuntimeUnavailable")
    assert "closed" in meta["error"]


def test_a_thousand_branches_leave_no_thread(backend: EmbeddedBackend) -> None:
    runtime = ForkRuntime(backend, _info(backend), None, timeout_s=120)
    before = set(threading.enumerate())
    for _ in range(10):
        runtime.branch([expansion(25, tokens=2, prefix=PROMPT + str(i)) for i in range(4)])
    runtime.close()
    left = set(threading.enumerate()) - before
    for thread in left:
        thread.join(20)
    assert not any(thread.is_alive() for thread in left)
    assert np.all([not t.name.startswith("marco-embedded") for t in threading.enumerate()])


def _info(backend: EmbeddedBackend) -> Any:
    return backend.model.info
