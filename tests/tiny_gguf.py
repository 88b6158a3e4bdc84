"""A GGUF file of a tiny model, in any of the types that llama.cpp's files come in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import tokenizers
from gguf.quants import quantize

from tests.tiny_model import read_file

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_BLOCK = 256  # values of a block of the K types


def write_gguf(path: Path, folder: Path, kind: str = "F32", **metadata: Any) -> Path:
    """The folder's model as a GGUF file whose matrices have the type `kind`.

    Random blocks stand in for Q4_K and Q6_K, which the gguf package can read but not write.
    `metadata` replaces entries: architecture, pre, tokens and so on.
    """
    c = json.loads((folder / "config.json").read_text())
    arch = metadata.pop("architecture", c["model_type"])
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_context_length(c["max_position_embeddings"])
    writer.add_embedding_length(c["hidden_size"])
    writer.add_feed_forward_length(c["intermediate_size"])
    writer.add_head_count(c["num_attention_heads"])
    writer.add_head_count_kv(c["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    writer.add_rope_freq_base(c["rope_theta"])
    if "head_dim" in c:
        writer.add_key_length(c["head_dim"])
        writer.add_value_length(c["head_dim"])
    if not metadata.get("tokens"):
        _add_tokenizer(writer, folder)
    _add_metadata(writer, arch, metadata)
    rng = np.random.default_rng(7)
    for name, values in read_file(folder / "model.safetensors").items():
        if arch == "llama":
            values = _in_llama_order(name, values, c)
        data, stored = _stored(rng, values, kind)
        writer.add_tensor(_name(arch, c["num_hidden_layers"], name), data, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path) -> None:
    raw = json.loads((folder / "tokenizer.json").read_text())
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    added = {e["id"]: _CONTROL if e["special"] else _USER_DEFINED for e in raw["added_tokens"]}
    ids = tokenizer.get_vocab()
    names = {i: token for token, i in ids.items()}
    count = len(names)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([names[i] for i in range(count)])
    writer.add_token_types([added.get(i, _NORMAL) for i in range(count)])
    writer.add_token_merges([" ".join(pair) for pair in raw["model"]["merges"]])
    writer.add_eos_token_id(ids["<|im_end|>"])
    writer.add_pad_token_id(ids["<|endoftext|>"])
    writer.add_chat_template(TEMPLATE)


def _add_metadata(writer: gguf.GGUFWriter, arch: str, metadata: dict[str, Any]) -> None:
    add: dict[str, Any] = {
        "pre": writer.add_tokenizer_pre,
        "model": writer.add_tokenizer_model,
        "tokens": writer.add_token_list,
        "scores": writer.add_token_scores,
        "merges": writer.add_token_merges,
        "types": writer.add_token_types,
        "experts": writer.add_expert_count,
        "window": writer.add_sliding_window,
        "scaling": lambda kind: writer.add_string(f"{arch}.rope.scaling.type", kind),
        "factor": lambda value: writer.add_float32(f"{arch}.rope.scaling.factor", value),
        "factors": lambda values: writer.add_tensor("rope_freqs.weight", values),
    }
    for key, value in metadata.items():
        add[key](value)


def _name(arch: str, layers: int, name: str) -> str:
    architecture = {v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[arch]
    found = gguf.get_tensor_name_map(architecture, layers).get_name(name, (".weight", ".bias"))
    assert found is not None, name
    return str(found)


def _in_llama_order(name: str, values: npt.NDArray[Any], c: dict[str, Any]) -> npt.NDArray[Any]:
    """As llama.cpp's converter reorders the rows of queries and keys."""
    heads = {"q_proj": c["num_attention_heads"], "k_proj": c["num_key_value_heads"]}
    for part, count in heads.items():
        if part in name:
            shape = (count, 2, values.shape[0] // count // 2, *values.shape[1:])
            return values.reshape(shape).swapaxes(1, 2).reshape(values.shape)
    return values


def _stored(rng: np.random.Generator, values: npt.NDArray[Any], kind: str) -> tuple[Any, Any]:
    if values.ndim == 1 or kind == "F32":
        return values, gguf.GGMLQuantizationType.F32
    stored = gguf.GGMLQuantizationType[kind]
    if kind not in ("Q4_K", "Q6_K"):
        return quantize(values, stored), stored
    rows, blocks = values.shape[0], values.shape[1] // _BLOCK
    scale = np.full((rows, blocks, 1), 2e-4 if kind == "Q6_K" else 1e-3, np.float16).view(np.uint8)

    def noise(size: int) -> npt.NDArray[np.uint8]:
        return rng.integers(0, 256, (rows, blocks, size), dtype=np.uint8)

    least = np.full((rows, blocks, 1), 6e-3, np.float16).view(np.uint8)
    parts = [scale, least, noise(140)] if kind == "Q4_K" else [noise(208), scale]
    return np.concatenate(parts, axis=-1).reshape(rows, -1), stored
