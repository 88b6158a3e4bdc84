"""The shipped model folder: complete, small, readable, and described by its card."""

from __future__ import annotations

import json
import math
import random
import struct
from typing import Any

import pytest
from tokenizers import Tokenizer

from marco_search.pocket import MODEL_DIR
from marco_search.runtime.chat import read_chat_template
from marco_search.runtime.embedded.files import open_files
from marco_search.search.branches import Message
from ops.pocket.problems import REFLECTION
from ops.pocket.samples import draw_sample
from ops.pocket.tokenizer import SPECIAL_TOKENS, TAGS, user_prompt

MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((MODEL_DIR / "config.json").read_text())
    return loaded


def header() -> dict[str, Any]:
    with (MODEL_DIR / "model.safetensors").open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        loaded: dict[str, Any] = json.loads(file.read(size))
    return loaded


def test_the_folder_stays_small() -> None:
    model_files = [path for path in MODEL_DIR.iterdir() if path.suffix != ".jsonl"]
    assert sum(path.stat().st_size for path in model_files if path.is_file()) <= 6 * MEGABYTE


def test_weights_are_bf16_and_fit_the_config(config: dict[str, Any]) -> None:
    tensors = {name: info for name, info in header().items() if name != "__metadata__"}
    assert {info["dtype"] for info in tensors.values()} == {"BF16"}
    embedding = tensors["model.embed_tokens.weight"]["shape"]
    assert embedding == [config["vocab_size"], config["hidden_size"]]
    assert "lm_head.weight" not in tensors and config["tie_word_embeddings"]
    layers = {name.split(".")[2] for name in tensors if name.startswith("model.layers.")}
    assert len(layers) == config["num_hidden_layers"]
    assert 1.5e6 < sum(math.prod(info["shape"]) for info in tensors.values()) < 2e6


def test_tokenizer_and_config_agree(tokenizer: Tokenizer, config: dict[str, Any]) -> None:
    assert tokenizer.get_vocab_size() == config["vocab_size"]
    assert tokenizer.token_to_id("<|im_end|>") == config["eos_token_id"]
    assert tokenizer.token_to_id("<|endoftext|>") == config["pad_token_id"]
    generation = json.loads((MODEL_DIR / "generation_config.json").read_text())
    assert config["eos_token_id"] in generation["eos_token_id"]
    render = read_chat_template(open_files(MODEL_DIR))
    assert render is not None
    turns = [Message(role="system", content="Be."), Message(role="user", content="Hi")]
    assert render(turns) == user_prompt("Hi")


def test_digits_and_chinese_characters_stand_alone(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("23*14=322").tokens == list("23*14=322")
    assert len(tokenizer.encode("小明有苹果").ids) == 5
    assert len(tokenizer.encode("\n\n").ids) == 2


def test_tags_are_kept_and_special_tokens_dropped_when_decoding(tokenizer: Tokenizer) -> None:
    for token in (*TAGS, *SPECIAL_TOKENS):
        assert len(tokenizer.encode(token).ids) == 1
    text = "<Thought>\nStep 1: 1+1=2.\n</Thought>\n<Output>\n2\n</Output>"
    ids = tokenizer.encode(f"{text}<|im_end|>").ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize(
    "text", ["naïve café 😀", "１２３，全角", "tab\tand  spaces ", "老铁没毛病"]
)
def test_any_text_survives_the_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_samples_have_the_intended_lengths(tokenizer: Tokenizer) -> None:
    rng = random.Random(11)
    answers, steps = [], []
    for _ in range(600):
        sample = draw_sample(rng)
        whole = user_prompt(sample.user) + sample.assistant
        assert len(tokenizer.encode(whole).ids) < 1000
        if sample.kind == "problem" and REFLECTION not in sample.assistant:
            answers.append(len(tokenizer.encode(sample.assistant).ids))
            thought = sample.assistant.split("\n</Thought>")[0].splitlines()[1:]
            steps += [len(tokenizer.encode(line).ids) for line in thought]
    assert 80 < sorted(answers)[len(answers) // 2] < 180
    assert 15 <= sorted(steps)[len(steps) // 2] <= 35


def test_reference_logprobs_cover_every_kind_of_prompt(tokenizer: Tokenizer) -> None:
    records = json.loads((MODEL_DIR / "reference.json").read_text(encoding="utf-8"))
    names = " ".join(record["name"] for record in records)
    assert len(records) >= 12
    for kind in ("english", "chinese", "translation", "reflection", "open ended"):
        assert kind in names
    for record in records:
        assert tokenizer.encode(record["prompt"]).ids == record["ids"]
        assert len(record["generated"]) == len(record["logprobs"]) == len(record["top"]) <= 32
        for token, logprob, top in zip(
            record["generated"], record["logprobs"], record["top"], strict=True
        ):
            assert len(top) == 5 and top[0] == [token, logprob]
            assert sum(math.exp(value) for _, value in top) <= 1.0001


def test_the_card_states_how_the_model_was_made_and_measured() -> None:
    card = (MODEL_DIR / "README.md").read_text(encoding="utf-8")
    for needed in ("ops.pocket.train", "n = ", "seed", "steps", "loss", "interval", "Limits"):
        assert needed in card, needed
