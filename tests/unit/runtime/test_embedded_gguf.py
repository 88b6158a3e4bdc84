"""GGUF files: the same model as the folder they were made from, tokenizer and template too."""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marco_search.errors import ModelRefused
from marco_search.runtime.embedded.backend import load_model
from marco_search.runtime.embedded.decoder import Part
from marco_search.runtime.embedded.files import open_files
from marco_search.runtime.embedded.tokenizer import Tokenizer
from marco_search.search.branches import Message
from tests.tiny_gguf import write_gguf
from tests.tiny_model import write_model

TEXT = "Step 1: naïve 老铁 12345 😀<|im_end|></Thought>"


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_a_file_is_the_model_of_its_folder(tmp_path: Path, kind: str) -> None:
    folder = write_model(tmp_path / "m", kind=kind, tied=kind == "qwen2", head_dim=16)
    file = write_gguf(tmp_path / "tiny.Q0.gguf", folder)
    expected, found = load_model(folder), load_model(file)
    ids = found.tokenizer.encode(TEXT)
    assert ids.tolist() == expected.tokenizer.encode(TEXT).tolist()
    assert found.tokenizer.token_bytes == expected.tokenizer.token_bytes
    logits = []
    for model in (expected, found):
        model.decoder.slots.resize((1, 1))
        logits.append(model.decoder.prefill([Part(0, 0, ids)]))
    assert np.array_equal(logits[0], logits[1])
    assert found.render is not None
    assert found.render([Message(role="user", content="hi")]) == "[user]hi[assistant]"
    assert found.config.eos_ids == expected.config.eos_ids
    assert found.info.model == "tiny.Q0"
    assert found.info.revision == hashlib.sha256(file.read_bytes()).hexdigest()


def test_factors_of_the_rotations_are_those_of_llama_3(tmp_path: Path) -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    plain = write_model(tmp_path / "plain", kind="llama")
    scaled = load_model(write_model(tmp_path / "m", kind="llama", rope_scaling=scaling)).config
    speeds = np.array(load_model(plain).config.rope_speeds)
    factors = (speeds / scaled.rope_speeds).astype(np.float32)
    file = write_gguf(tmp_path / "m.gguf", plain, factors=factors)
    assert load_model(file).config.rope_speeds == pytest.approx(scaled.rope_speeds, rel=1e-6)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"architecture": "gemma"}, "model_type 'gemma'"),
        ({"experts": 8}, "mixture of experts"),
        ({"window": 64}, "sliding-window"),
        ({"scaling": "yarn"}, "rope scaling 'yarn'"),
        ({"factor": 4.0}, "rope scaling 'linear'"),
        ({"pre": "tekken"}, "'tekken'; accepted are gpt-2, smollm, qwen2, llama-bpe"),
        ({"model": "bert", "tokens": ["a"]}, "tokenizer 'bert'"),
    ],
)
def test_what_is_not_supported_is_named(
    tmp_path: Path, metadata: dict[str, Any], message: str
) -> None:
    folder = write_model(tmp_path / "m", kind="llama")
    with pytest.raises(ModelRefused, match=re.escape(message)):
        load_model(write_gguf(tmp_path / "m.gguf", folder, **metadata))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf", write_model(tmp_path / "m"))
    whole = file.read_bytes()
    for content in (b"", b"version https://git-lfs.github.com/spec/v1\n", whole[: len(whole) // 2]):
        file.write_bytes(content)
        with pytest.raises(ModelRefused, match=r"m\.gguf"):
            load_model(file)


def test_without_the_package_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_gguf(tmp_path / "m.gguf", write_model(tmp_path / "m"))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModelRefused, match=re.escape("marco-search[gguf]")):
        load_model(file)


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("smollm", ["a", " ", "1", "2", "3", "4"]),
        ("qwen2", ["a", " ", "1", "2", "3", "4"]),
        ("llama-bpe", ["a", " ", "123", "4"]),
    ],
)
def test_digits_are_cut_as_the_model_learned_them(
    tmp_path: Path, pre: str, pieces: list[str]
) -> None:
    tokens = [*map(chr, range(33, 127)), "Ġ", "12", "34", "123", "1234", "Ġ1"]
    merges = ["1 2", "3 4", "12 3", "123 4", "Ġ 1"]
    file = write_gguf(
        tmp_path / "m.gguf",
        write_model(tmp_path / "m"),
        model="gpt2",
        pre=pre,
        tokens=tokens,
        types=[1] * len(tokens),
        merges=merges,
    )
    tokenizer = Tokenizer(open_files(file), 1000)
    assert tokenizer.pieces(tokenizer.encode("a 1234")) == pieces


def test_a_sentencepiece_tokenizer(tmp_path: Path) -> None:
    words = ["▁", "a", "p", "▁a", "pp", "▁app", "l", "e", "▁apple", "le", "s"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    file = write_gguf(
        tmp_path / "m.gguf",
        write_model(tmp_path / "m", kind="llama"),
        model="llama",
        tokens=tokens,
        types=[2, 3, 3] + [6] * 256 + [1] * len(words),
        scores=[0.0] * 259 + [-10.0, -9.0, -9.0, -1.0, -2.0, -3.0, -9.0, -9.0, -4.0, -5.0, -9.0],
    )
    tokenizer = Tokenizer(open_files(file), len(tokens))

    def pieces(text: str, inside: bool = False) -> list[str]:
        return tokenizer.pieces(tokenizer.encode(text, inside))

    assert pieces("apple</s>") == [" apple", ""]
    assert pieces("apple", inside=True) == ["a", "pp", "le"]
    assert pieces(" apples", inside=True) == [" apple", "s"]
    emoji = tokenizer.encode("😀", inside=True)
    assert tokenizer.pieces(emoji) == ["", "", "", "😀"]
    assert [tokenizer.alone(i) for i in emoji] == ["\ufffd"] * 4
    assert tokenizer.alone(3 + ord("\n")) == "\n"
