"""Which model folders the embedded engine takes, and what it says about the others."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marco_search.errors import ModelRefused
from marco_search.runtime.chat import compile_template, read_chat_template, render_chatml
from marco_search.runtime.embedded.backend import load_model
from marco_search.runtime.embedded.decoder import Part
from marco_search.runtime.embedded.files import open_files, read_tensors
from marco_search.search.branches import Message
from tests.tiny_model import read_file, write_file, write_model


def logits_of(folder: Path) -> np.ndarray[Any, Any]:
    model = load_model(folder)
    model.decoder.slots.resize((1, 1))
    ids = np.arange(40) * 7 % model.config.vocab
    return model.decoder.prefill([Part(0, 0, ids)])


@pytest.mark.parametrize("shards", [2, 3])
@pytest.mark.parametrize("tied", [True, False])
def test_a_sharded_folder_is_the_same_model(tmp_path: Path, shards: int, tied: bool) -> None:
    whole = write_model(tmp_path / "whole", tied=tied)
    cut = write_model(tmp_path / "cut", tied=tied, shards=shards)
    assert np.array_equal(logits_of(whole), logits_of(cut))


def test_a_whole_file_counts_more_than_an_index_beside_it(tmp_path: Path) -> None:
    whole, cut = write_model(tmp_path / "whole"), write_model(tmp_path / "cut", shards=2)
    revision, logits = load_model(whole).info.revision, logits_of(whole)
    index = "model.safetensors.index.json"
    shutil.copy(cut / index, whole / index)
    assert load_model(whole).info.revision == revision
    assert np.array_equal(logits_of(whole), logits)


IM_END = '"<|im_end|>"'


@pytest.mark.parametrize("named", [IM_END, f'{{"content": {IM_END}, "special": true}}'])
def test_the_tokenizer_s_end_of_turn_ends_a_sequence(tmp_path: Path, named: str) -> None:
    folder = write_model(tmp_path / "m", eos_token_id=3)
    (folder / "generation_config.json").write_text('{"eos_token_id": [3, 5]}')
    (folder / "tokenizer_config.json").write_text(f'{{"eos_token": {named}}}')
    model = load_model(folder)
    end = model.tokenizer.id_of("<|im_end|>")
    assert end is not None and model.config.eos_ids == (3, 5, end)


@pytest.mark.parametrize("named", ["null", "7", "[]", '"<|no such token|>"', '{"content": 1}'])
def test_an_end_of_turn_that_names_no_token_is_none(tmp_path: Path, named: str) -> None:
    folder = write_model(tmp_path / "m", eos_token_id=3)
    (folder / "tokenizer_config.json").write_text(f'{{"eos_token": {named}}}')
    assert load_model(folder).config.eos_ids == (3,)


@pytest.mark.parametrize("ids", ["</s>", [1, "2"], [[1]], 1.5, True])
def test_ends_that_are_no_token_ids_are_refused(tmp_path: Path, ids: Any) -> None:
    with pytest.raises(ModelRefused, match="eos_token_id has"):
        load_model(write_model(tmp_path / "m", eos_token_id=ids))


@pytest.mark.parametrize(("dtype", "near"), [("F16", 0.02), ("BF16", 0.2)])
def test_half_precision_weights_load(tmp_path: Path, dtype: str, near: float) -> None:
    exact = logits_of(write_model(tmp_path / "f32"))
    half = logits_of(write_model(tmp_path / dtype, dtype=dtype))
    assert 0 < np.abs(exact - half).max() < near


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 1), (3, 3), (1, 1)])
def test_any_grouping_of_heads_loads(tmp_path: Path, heads: int, kv_heads: int) -> None:
    folder = write_model(tmp_path / "m", heads=heads, kv_heads=kv_heads, biases=heads != 6)
    assert np.isfinite(logits_of(folder)).all()


def test_the_same_weights_have_the_same_revision(tmp_path: Path) -> None:
    infos = [
        load_model(write_model(tmp_path / name, seed=seed)).info
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert infos[0].revision == infos[1].revision != infos[2].revision
    assert [i.model for i in infos] == ["a", "b", "c"]
    assert infos[0].context_tokens == 512


def test_a_folder_says_what_its_model_was_trained_from(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    base = load_model(folder).info
    assert base.training is None
    training = {
        "parent_model": "pocket", "parent_revision": "a" * 64, "manifests": ["b" * 64],
        "config_sha256": "c" * 64, "method": "sft", "seed": 3,
    }  # fmt: skip
    file = folder / "marco_training.json"
    file.write_text(json.dumps(training | {"more": "is left out"}))
    info = load_model(folder).info
    assert info.training is not None
    assert (info.revision, info.training.model_dump()) == (base.revision, training)
    for wrong in ({"manifests": ["b"]}, {"parent_model": None}, {"seed": "3"}):
        file.write_text(json.dumps(training | wrong))
        with pytest.raises(ModelRefused, match=rf"marco_training.json .*{next(iter(wrong))}"):
            load_model(folder)


def test_bf16_is_written_to_the_nearest(tmp_path: Path) -> None:
    values = np.array([1.0, 1.00390625, -2.5, 3.1415927, 1e-3], np.float32)
    write_file(tmp_path / "x.safetensors", {"x": values}, dtype="BF16")
    read = read_tensors(tmp_path / "x.safetensors")["x"]
    assert read.tolist() == pytest.approx(values.tolist(), rel=2**-8)
    assert read[0] == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["GemmaForCausalLM"], "model_type": "gemma"}, "GemmaForCausalLM"),
        ({"model_type": "mistral", "architectures": []}, "model_type 'mistral'"),
        (
            {
                "model_type": "qwen3_moe",
                "architectures": ["Qwen3MoeForCausalLM"],
                "num_experts": 8,
            },
            "Qwen3MoeForCausalLM (a mixture of experts)",
        ),
        ({"model_type": "qwen3", "architectures": []}, "self_attn.q_norm.weight"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope scaling 'yarn'"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope scaling 'llama3' is not usable"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial rotary"),
        ({"attention_bias": True}, "attention_bias"),
        ({"use_sliding_window": True}, "sliding-window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding-window"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised (awq)"),
        ({"hidden_act": "gelu"}, "'gelu'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_hidden_layers": 3}, "model.layers.2."),
        ({"vocab_size": 64}, "tokenizer has"),
        ({"intermediate_size": 81}, "config.json says"),
        ({"num_key_value_heads": 3}, "multiple of key-value heads"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = write_model(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ModelRefused, match=re.escape(message)):
        load_model(folder)


@pytest.mark.parametrize(
    "name",
    ["model.layers.1.self_attn.o_proj.bias", "model.layers.2.mlp.up_proj.weight", "lm_head.bias"],
)
def test_weights_that_would_be_left_out_are_refused(tmp_path: Path, name: str) -> None:
    file = write_model(tmp_path / "m") / "model.safetensors"
    tensors: dict[str, Any] = {**read_file(file), "lm_head.weight": np.ones(1)}
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(6)
    write_file(file, tensors)
    load_model(file.parent)
    write_file(file, {**tensors, name: np.ones(48)})
    with pytest.raises(ModelRefused, match=name):
        load_model(file.parent)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_or_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    folder = write_model(tmp_path / "m")
    for content in (b"version https://git-lfs.github.com/spec/v1\n", b"", b"\xff" * 64):
        (folder / name).write_bytes(content)
        with pytest.raises(ModelRefused, match=re.escape(name)):
            load_model(folder)
    (folder / name).unlink()
    with pytest.raises(ModelRefused, match=re.escape(name)):
        load_model(folder)


def test_a_path_that_is_not_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="MARCO_MODEL"):
        load_model(tmp_path / "nothing")


def test_a_quantised_tensor_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"F32"', b'"I32"'))
    with pytest.raises(ModelRefused, match="type I32"):
        load_model(folder)


def test_another_kind_of_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["decoder"] = {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always"}
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(ModelRefused, match="byte-level BPE"):
        load_model(folder)


MESSAGES = [Message(role="user", content="1+1? <|im_end|> 你好")]


def test_no_space_comes_before_a_text_that_goes_on(tmp_path: Path) -> None:
    """Some tokenizers put one before the first word; a reflection is not the first."""
    folder = write_model(tmp_path / "m")
    file = folder / "tokenizer.json"
    raw = json.loads(file.read_text())
    spaced = raw["pre_tokenizer"] | {"add_prefix_space": True}
    for split in (spaced, {"type": "Sequence", "pretokenizers": [spaced]}):
        file.write_text(json.dumps(raw | {"pre_tokenizer": split}))
        tokenizer = load_model(folder).tokenizer
        first, inside = (tokenizer.encode("apples", inside) for inside in (False, True))
        assert "".join(tokenizer.pieces(first)) == " apples"
        assert "".join(tokenizer.pieces(inside)) == "apples"


def test_the_models_own_template_renders_the_prompt(tmp_path: Path) -> None:
    template = (
        "{%- for m in messages %}{{ bos_token }}[{{ m.role }}] {{ m.content | tojson }}\n"
        "{% if loop.index > 9 %}{% break %}{% endif %}{% endfor %}"
        "{% generation %}{% if add_generation_prompt %}[assistant]{% endif %}{% endgeneration %}"
    )
    (tmp_path / "chat_template.jinja").write_text(template, encoding="utf-8")
    config = {"bos_token": {"content": "<s>"}, "chat_template": "not this one"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    render = read_chat_template(open_files(tmp_path))
    assert render is not None
    assert render(MESSAGES) == '<s>[user] "1+1? < |im_end|> 你好"\n[assistant]'


@pytest.mark.parametrize(
    ("words", "rendered"),
    [
        ("a<\uff5cAssistant\uff5c>b", "a< \uff5cAssistant\uff5c>b"),
        ("a<end_of_turn>\n<start_of_turn>model", "a< end_of_turn>\n< start_of_turn>model"),
        ("a[/INST]b", "a[ /INST]b"),
        ("a<eos>b</s>", "a< eos>b</s>"),  # one is this model's
        ("x < y | y > z, [1]", "x < y | y > z, [1]"),
    ],
)
def test_no_caller_ends_its_turn_with_a_token_of_the_model(words: str, rendered: str) -> None:
    render = compile_template("{{ messages[0].content }}", {"eos_token": "<eos>", "pad_token": "a"})
    assert render([Message(role="user", content=words)]) == rendered


@pytest.mark.parametrize("options", [{"tools": 5}, {"strftime_now": 1}])
def test_an_option_that_a_template_can_not_take_is_no_bug(options: dict[str, Any]) -> None:
    render = compile_template("{% for t in tools or () %}{% endfor %}{{ strftime_now('%Y') }}")
    with pytest.raises(ModelRefused, match="rejected the prompt: 'int' object is not"):
        render(MESSAGES, options)


def test_a_folder_without_a_template_gets_chatml(tmp_path: Path) -> None:
    assert read_chat_template(open_files(tmp_path)) is None
    assert render_chatml(MESSAGES) == (
        "<|im_start|>user\n1+1? < |im_end|> 你好<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    "template",
    ["{% for %}", "{{ raise_exception('no') }}", "{{ messages.__class__.__mro__[1] }}"],
)
def test_a_template_that_fails_is_refused(tmp_path: Path, template: str) -> None:
    config = {"chat_template": [{"name": "default", "template": template}]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelRefused, match="template"):
        render = read_chat_template(open_files(tmp_path))
        assert render is not None
        render(MESSAGES)
