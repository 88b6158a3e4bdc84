"""A folder with random weights and its own small tokenizer, written for a test."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

EOS = "<|im_end|>"
CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
MARKERS = ("<Thought>", "</Thought>", "<Output>", "</Output>")
CORPUS = [
    "Step 1: Tom has 3 apples and buys 12 more, so 3+12=15.",
    "第1步：小明有3个苹果，又买了12个，所以3+12=15。",
    "The answer is 15 apples. 答案是15个苹果。",
] * 3


def write_tokenizer(folder: Path) -> int:
    """Write tokenizer.json and tokenizer_config.json; returns the number of tokens."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", EOS])
    tokenizer.add_tokens([tokenizers.AddedToken(m, normalized=False) for m in MARKERS])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"eos_token": EOS, "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return tokenizer.get_vocab_size()


def write_model(
    folder: Path,
    *,
    kind: str = "qwen2",
    seed: int = 0,
    dtype: str = "F32",
    shards: int = 1,
    tied: bool = True,
    biases: bool | None = None,
    hidden: int = 48,
    heads: int = 4,
    kv_heads: int = 2,
    context: int = 512,
    **config: Any,
) -> Path:
    """Write a whole model folder; `config` overrides or adds entries of config.json.

    `kind` is its model_type; only Qwen2 has biases unless told.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocab = write_tokenizer(folder)
    eos = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(EOS)
    full = {
        "architectures": [CLASSES[kind]],
        "model_type": kind,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": 80,
        "num_attention_heads": heads,
        "num_hidden_layers": 2,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": tied,
        "eos_token_id": eos,
        "vocab_size": vocab,
        **config,
    }
    (folder / "config.json").write_text(json.dumps(full), encoding="utf-8")
    biases = kind == "qwen2" if biases is None else biases
    tensors = _tensors(np.random.default_rng(seed), full, biases)
    if shards == 1:
        write_file(folder / "model.safetensors", tensors, dtype=dtype)
    else:
        names = sorted(tensors)
        where = {n: f"model-{i % shards + 1:05d}.safetensors" for i, n in enumerate(names)}
        for file in set(where.values()):
            part = {n: tensors[n] for n in names if where[n] == file}
            write_file(folder / file, part, dtype=dtype)
        index = json.dumps({"metadata": {}, "weight_map": where})
        (folder / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    return folder


def _tensors(
    rng: np.random.Generator, c: dict[str, Any], biases: bool
) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    h, inner, head = (
        c["hidden_size"],
        c["intermediate_size"],
        c.get("head_dim", c["hidden_size"] // c["num_attention_heads"]),
    )
    queries, kv = head * c["num_attention_heads"], head * c["num_key_value_heads"]

    def normal(*shape: int, scale: float = 0.15) -> np.ndarray[Any, np.dtype[np.float32]]:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    tensors = {
        "model.embed_tokens.weight": normal(c["vocab_size"], h, scale=0.5),
        "model.norm.weight": 1 + normal(h),
    }
    if not c["tie_word_embeddings"]:
        tensors["lm_head.weight"] = normal(c["vocab_size"], h, scale=0.5)
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}."
        tensors[at + "input_layernorm.weight"] = 1 + normal(h)
        tensors[at + "post_attention_layernorm.weight"] = 1 + normal(h)
        for name, rows in (("q", queries), ("k", kv), ("v", kv)):
            tensors[f"{at}self_attn.{name}_proj.weight"] = normal(rows, h)
            if biases:
                tensors[f"{at}self_attn.{name}_proj.bias"] = normal(rows)
        tensors[at + "self_attn.o_proj.weight"] = normal(h, queries)
        if c["model_type"] == "qwen3":
            tensors[at + "self_attn.q_norm.weight"] = 1 + normal(head)
            tensors[at + "self_attn.k_norm.weight"] = 1 + normal(head)
        tensors[at + "mlp.gate_proj.weight"] = normal(inner, h)
        tensors[at + "mlp.up_proj.weight"] = normal(inner, h)
        tensors[at + "mlp.down_proj.weight"] = normal(h, inner)
    return tensors


def write_file(path: Path, tensors: Mapping[str, npt.NDArray[Any]], *, dtype: str = "F32") -> None:
    """Write `tensors` to `path`, stored as `dtype` (F32, F16, or BF16 rounded to even)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts: list[bytes] = []
    offset = 0
    for name in sorted(tensors):
        values = np.ascontiguousarray(tensors[name], np.float32)
        if dtype == "BF16":
            bits = values.view(np.uint32)
            raw = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
        else:
            raw = values.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()
        end = offset + len(raw)
        header[name] = {"dtype": dtype, "shape": values.shape, "data_offsets": [offset, end]}
        parts.append(raw)
        offset = end
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    path.write_bytes(len(head).to_bytes(8, "little") + head + b"".join(parts))


def read_file(path: Path) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """The tensors of a file that `write_file` wrote as F32."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    return {
        name: np.frombuffer(
            raw, "<f4", math.prod(e["shape"]), start + e["data_offsets"][0]
        ).reshape(e["shape"])
        for name, e in header.items()
        if name != "__metadata__"
    }
