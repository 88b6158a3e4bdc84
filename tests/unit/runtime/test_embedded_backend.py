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
from sglang.lang.choices import greedy_token_selection, unconditional_likelihood_normalized

from marco_search.errors import PromptTooLong
from marco_search.runtime.embedded.backend import EmbeddedBackend
from marco_search.runtime.embedded.model import LoadedModel, load_model
from marco_search.runtime.embedded.requests import GenerationRequest
from marco_search.runtime.embedded.streaming import TextStream
from marco_search.runtime.fork_runtime import ForkRuntime
from marco_search.runtime.params import VARIABLE, BranchParams
from marco_search.runtime.reply import read_completion
from marco_search.search.branches import BranchRequest, Expansion, Finish, ReflectionPlacement
from tests.tiny_model import write_model

ROOT = Path(__file__).resolve().parents[3]
PROMPT = "<|im_start|>user\nTom has 3 apples.<|im_end|>\n<Thought>"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(write_model(tmp_path_factory.mktemp("model") / "m", context=400))


@pytest.fixture
def backend(model: LoadedModel) -> Iterator[EmbeddedBackend]:
    opened = EmbeddedBackend(model, max_rows=32, cache_bytes=1 << 24, timeout_s=120)
    yield opened
    opened.shutdown()


@sgl.function  # type: ignore[untyped-decorator]
def complete(s: Any, prompt: str, seed: int, options: dict[str, Any]) -> None:
    s += prompt
    deadline = time.monotonic() + 120
    s.set_var(VARIABLE, BranchParams(seed=seed, rid=f"r{seed}", deadline=deadline))
    s += sgl.gen("out", **options)


def run(
    backend: EmbeddedBackend, prompt: str = PROMPT, seed: int = 1, **options: Any
) -> tuple[str, dict[str, Any]]:
    asked = {"max_tokens": 20, "temperature": 1.0, "return_logprob": True, **options}
    asked.setdefault("top_logprobs_num", 5)
    asked.setdefault("return_text_in_logprobs", True)
    state = complete.run(prompt=prompt, seed=seed, options=asked, backend=backend)
    return state["out"], state.get_meta_info("out")


def expansion(branches: int, *, tokens: int = 30, prefix: str = PROMPT) -> Expansion:
    requests = tuple(
        BranchRequest(branch_id=i, seed=i, max_new_tokens=tokens, temperature=1.0)
        for i in range(branches)
    )
    return Expansion(node_id=0, prefix=prefix, branches=requests)


def test_meta_info_has_sglangs_keys_and_shapes(backend: EmbeddedBackend) -> None:
    text, meta = run(backend, ignore_eos=True)
    assert meta["id"] == "r1"
    assert meta["finish_reason"] == {"type": "length", "length": 20}
    assert meta["prompt_tokens"] == len(backend.encode(PROMPT))
    assert meta["completion_tokens"] == 20
    assert meta["cached_tokens"] == 0
    assert meta["e2e_latency"] > 0
    assert meta["weight_version"] == "default"
    assert "".join(piece for _, _, piece in meta["output_token_logprobs"]) == text
    for (logprob, token, _), top in zip(
        meta["output_token_logprobs"], meta["output_top_logprobs"], strict=True
    ):
        assert [entry[0] for entry in top] == sorted((e[0] for e in top), reverse=True)
        assert len(top) == 5
        assert logprob <= top[0][0] <= 0
        assert {e[1]: e[0] for e in top}.get(token, logprob) == logprob
    _, bare = run(backend, return_logprob=False)
    assert "output_token_logprobs" not in bare
    _, silent = run(backend, return_text_in_logprobs=False, top_logprobs_num=2)
    assert silent["output_token_logprobs"][0][2] is None
    assert len(silent["output_top_logprobs"][0]) == 2


def test_the_prompt_is_scored_on_request(backend: EmbeddedBackend) -> None:
    _, meta = run(backend, max_tokens=4)
    assert meta["input_token_logprobs"] == []
    prompt = backend.encode(PROMPT).tolist()
    _, meta = run(backend, logprob_start_len=3)
    found = meta["input_token_logprobs"]
    assert [entry[1] for entry in found] == prompt[3:]
    assert found[0][0] is None
    assert all(entry[0] < 0 for entry in found[1:])
    _, cached = run(backend, logprob_start_len=3)
    assert cached["input_token_logprobs"] == found


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
    whole, _ = run(backend, seed=5, max_tokens=200, ignore_eos=True)
    tried = 0
    for length in (1, 2, 5):
        for at in range(0, min(len(whole), 120) - length, 4):
            stop = whole[at : at + length]
            if "\ufffd" in stop:
                continue
            tried += 1
            text, meta = run(backend, seed=5, max_tokens=200, ignore_eos=True, stop=[stop, "\0!"])
            assert text == whole[: whole.find(stop)]
            assert meta["finish_reason"] == {"type": "stop", "matched": stop}
            pieces = "".join(p for _, _, p in meta["output_token_logprobs"])
            assert pieces.startswith(text + stop)
            tokens = read_completion(text, meta, stops=[stop]).tokens
            assert "".join(t.text for t in tokens) == pieces
    assert tried > 10


def test_the_end_of_sequence_stops_and_has_no_text(model: LoadedModel, tmp_path: Path) -> None:
    other = load_model(write_model(tmp_path / "m"))
    one = EmbeddedBackend(other, max_rows=4, cache_bytes=1 << 20, timeout_s=120)
    _, meta = run(one, temperature=0.0, ignore_eos=True)
    one.shutdown()
    eos = meta["output_token_logprobs"][7][1]
    other.tokenizer.token_bytes[eos] = b""  # as a special token has it
    config = dataclasses.replace(other.config, eos_ids=(0, eos))
    other = dataclasses.replace(other, config=config)
    one = EmbeddedBackend(other, max_rows=4, cache_bytes=1 << 20, timeout_s=120)
    text, meta = run(one, temperature=0.0)
    assert meta["finish_reason"] == {"type": "stop", "matched": eos}
    assert meta["output_token_logprobs"][-1][1:] == [eos, ""]
    assert meta["completion_tokens"] <= 8
    tokens = read_completion(text, meta).tokens
    assert tokens[-1].text == ""
    assert "".join(t.text for t in tokens) == text
    token = meta["output_token_logprobs"][0][1]
    _, stopped = run(one, temperature=0.0, stop_token_ids=[token])
    assert stopped["finish_reason"] == {"type": "stop", "matched": token}
    assert stopped["completion_tokens"] == 1
    one.shutdown()


def test_a_forks_children_share_its_prefix(backend: EmbeddedBackend) -> None:
    runtime = ForkRuntime(backend, _info(backend), lambda m: "", timeout_s=120)
    prefix = PROMPT + "Step 1: 3+12=15. 第1步"
    branches = runtime.branch([expansion(6, prefix=prefix)])
    count = len(backend.encode(prefix))
    assert [(b.prompt_tokens, b.cached_tokens) for b in branches] == [(count, count)] * 6
    assert all(b.finish is not Finish.FAILED for b in branches)
    again = runtime.branch([expansion(6, prefix=prefix), expansion(6, prefix=prefix + "x")])
    assert again[:6] == branches


def test_a_fork_goes_on_from_the_tokens_that_are_kept(backend: EmbeddedBackend) -> None:
    """Also where the text would be tokenised otherwise: here a token for each character."""
    runtime = ForkRuntime(backend, _info(backend), lambda m: "", timeout_s=120)
    text = "Step 1: 3+12=15. "
    ids = tuple(int(i) for character in text for i in backend.encode(character))
    assert len(ids) > len(backend.encode(text))
    kept = dataclasses.replace(expansion(2, prefix=PROMPT + text), parts=(PROMPT, ids))
    count = len(backend.encode(PROMPT)) + len(ids)
    found = runtime.branch([kept])
    assert [(b.prompt_tokens, b.cached_tokens) for b in found] == [(count, count)] * 2
    (anew, _) = runtime.branch([expansion(2, prefix=PROMPT + text)])
    assert anew.prompt_tokens == len(backend.encode(PROMPT + text))


def test_a_search_round_is_the_same_in_any_order_and_company(backend: EmbeddedBackend) -> None:
    runtime = ForkRuntime(backend, _info(backend), lambda m: "", timeout_s=120)
    whole = runtime.branch([expansion(4, prefix=PROMPT + str(i)) for i in range(4)])
    backend.flush_cache()
    apart = [
        runtime.branch([Expansion(node_id=0, prefix=PROMPT + str(i), branches=(request,))])[0]
        for i in reversed(range(4))
        for request in reversed(expansion(4).branches)
    ]
    assert [b.segments for b in whole] == [b.segments for b in reversed(apart)]


def test_reflection_goes_on_from_the_text_it_was_put_into(backend: EmbeddedBackend) -> None:
    runtime = ForkRuntime(backend, _info(backend), lambda m: "", timeout_s=120)
    request = BranchRequest(
        branch_id=0, seed=3, max_new_tokens=10, temperature=1.0, reflect=ReflectionPlacement.FIRST
    )
    (branch,) = runtime.branch([Expansion(node_id=0, prefix=PROMPT, branches=(request,))])
    phrase, made = branch.segments
    plain = BranchRequest(branch_id=0, seed=3, max_new_tokens=10, temperature=1.0)
    (same,) = runtime.branch([Expansion(node_id=0, prefix=PROMPT + phrase.text, branches=(plain,))])
    assert same.segments == (made,)


def test_chinese_text_streams_in_whole_characters(
    backend: EmbeddedBackend, model: LoadedModel
) -> None:
    text = "第1步：小明有3个苹果，又买了12个🍎，所以3+12=15。</Thought>好"
    ids = model.tokenizer.encode(text).tolist()
    pieces = model.tokenizer.pieces(ids)
    assert "".join(pieces) == text
    assert "" in pieces
    stream = TextStream(model.tokenizer, ["</Thought>"])
    shown = [stream.feed(i) for i in ids]
    before = text.partition("</Thought>")[0]
    assert "".join(shown) + stream.rest(before) == before
    assert all("\ufffd" not in s and "<" not in s for s in shown)


def test_streaming_gives_the_text_that_generate_gives(backend: EmbeddedBackend) -> None:
    for seed, stop in ((1, []), (2, ["e"]), (3, ["15", "\0"])):
        options = {"max_tokens": 60, "temperature": 1.0, "stop": stop, "return_logprob": True}
        whole = complete.run(prompt=PROMPT, seed=seed, options=options, backend=backend)
        streamed = complete.run(
            prompt=PROMPT, seed=seed, options=options, backend=backend, stream=True
        )
        assert "".join(streamed.text_iter("out")) == whole["out"]
        found, expected = streamed.get_meta_info("out"), whole.get_meta_info("out")
        assert found["output_token_logprobs"] == expected["output_token_logprobs"]
        assert found["finish_reason"] == expected["finish_reason"]


@sgl.function  # type: ignore[untyped-decorator]
def choose(s: Any, prompt: str, choices: list[str], method: Any) -> None:
    s += prompt
    s += (
        sgl.select("pick", choices, choices_method=method)
        if method
        else sgl.select("pick", choices)
    )


def test_select_takes_the_most_probable_choice(
    backend: EmbeddedBackend, model: LoadedModel
) -> None:
    greedy = _best_text(backend, model)
    choices = ["zqzqzq", greedy, "\x01\x02"]
    for method in (None, greedy_token_selection):
        state = choose.run(prompt=PROMPT, choices=choices, method=method, backend=backend)
        assert state["pick"] == greedy
        assert state.text() == PROMPT + greedy
    meta = state.get_meta_info("pick")
    assert len(meta["input_token_logprobs"]) == 3
    state = choose.run(
        prompt=PROMPT,
        choices=choices,
        method=unconditional_likelihood_normalized,
        backend=backend,
    )
    assert state["pick"] in choices


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"regex": "[0-9]+"}, "regex"),
        ({"top_k": 5}, "top_k"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"top_logprobs_num": 6}, "at most 5"),
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"top_p": 0.0}, "top_p 0.0"),
    ],
)
def test_what_it_can_not_do_is_an_error_value(
    backend: EmbeddedBackend, options: dict[str, Any], said: str
) -> None:
    text, meta = run(backend, **options)
    assert text == ""
    assert meta["error_type"] == "BranchFailed"
    assert said in meta["error"]


def test_a_prompt_that_fills_the_context_is_refused(backend: EmbeddedBackend) -> None:
    runtime = ForkRuntime(backend, _info(backend), lambda m: "", timeout_s=120)
    long = "a\n" * 300
    with pytest.raises(PromptTooLong, match="400"):
        runtime.branch([expansion(2, prefix=long)])
    branches = runtime.branch([expansion(1), expansion(1, prefix=long)])
    assert [b.finish is Finish.FAILED for b in branches] == [False, True]
    _, meta = run(backend, prompt="")
    assert "empty" in meta["error"]
    ids = backend.encode(long)[:395]
    text = "".join(backend._model.tokenizer.pieces(ids.tolist()))
    _, meta = run(backend, prompt=text, max_tokens=100, ignore_eos=True)
    room = 400 - len(backend.encode(text))
    assert meta["finish_reason"] == {"type": "length", "length": room}


def test_a_closed_backend_fails_and_does_not_hang(backend: EmbeddedBackend) -> None:
    backend.shutdown()
    text, meta = run(backend)
    assert (text, meta["error_type"]) == ("", "RuntimeUnavailable")
    state = choose.run(prompt=PROMPT, choices=["a", "b"], method=None, backend=backend)
    assert state["pick"] == ""
    assert "closed" in state.get_meta_info("pick")["error"]
    options = {"max_tokens": 5}
    stream = complete.run(prompt=PROMPT, seed=1, options=options, backend=backend, stream=True)
    assert "".join(stream.text_iter("out")) == ""
    assert "closed" in stream.get_meta_info("out")["error"]


def test_a_thousand_branches_leave_no_thread(backend: EmbeddedBackend) -> None:
    runtime = ForkRuntime(backend, _info(backend), lambda m: "", timeout_s=120)
    before = set(threading.enumerate())
    for _ in range(10):
        runtime.branch([expansion(25, tokens=2, prefix=PROMPT + str(i)) for i in range(4)])
    runtime.close()
    left = set(threading.enumerate()) - before
    for thread in left:
        thread.join(20)
    assert not any(thread.is_alive() for thread in left)
    assert np.all([not t.name.startswith("marco-embedded") for t in threading.enumerate()])


def _best_text(backend: EmbeddedBackend, model: LoadedModel) -> str:
    """The most probable single token that is a whole text of its own."""
    scores = score_all(backend, model)
    for token in np.argsort(-scores):
        text = model.tokenizer.alone(int(token))
        if text.isalnum() and model.tokenizer.encode(PROMPT + text)[-1] == token:
            return text
    raise AssertionError("no token stands for itself")


def score_all(backend: EmbeddedBackend, model: LoadedModel) -> np.ndarray[Any, Any]:
    """The log-prob of every token after the prompt."""
    prompt = model.tokenizer.encode(PROMPT)
    scores = []
    for token in range(model.config.vocab):
        ids = np.append(prompt, token).astype(np.int32)
        asked = GenerationRequest(ids=ids, max_new_tokens=0, score_from=len(prompt))
        scores.append(backend.run(asked).scores[0])
    return np.array(scores)


def _info(backend: EmbeddedBackend) -> Any:
    return backend._model.info


def test_the_name_is_the_folders(backend: EmbeddedBackend) -> None:
    assert backend.get_model_name() == Path("m").name
