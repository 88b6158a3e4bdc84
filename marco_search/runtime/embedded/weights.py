"""A Qwen2 checkpoint's tensors: read from safetensors files and rearranged once for decoding.

A safetensors file (huggingface.co/docs/safetensors) is an 8-byte little-endian header length,
a JSON header (name -> dtype, shape, byte range), then the tensors' bytes.

Queries, keys and values become one product, gate and up another. RMSNorm weights and the
attention scale are folded into the product that follows, so a norm is one division. Each
rotary pair (i, i + d/2) is made adjacent: a rotation is then one complex multiplication, and
scores do not change because queries and keys are permuted alike.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from marco_search.errors import ModelRefused
from marco_search.runtime.embedded.config import ModelConfig
from marco_search.runtime.embedded.linear import Floats, Linear, MatmulMode, choose_mode

_INDEX = "model.safetensors.index.json"
_WHOLE = "model.safetensors"
_BYTES_OF = {"F32": 4, "F16": 2, "BF16": 2}
_HEADER_LIMIT_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder block; shapes are [inputs, outputs].

    qkv [hidden, (heads + 2 * kv_heads) * head_dim] with its bias, out [heads * head_dim, hidden],
    gate_up [hidden, 2 * intermediate] with the gate halved (see the decoder), down
    [intermediate, hidden].
    """

    qkv: Linear
    qkv_bias: Floats
    out: Linear
    gate_up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class Weights:
    """A whole model: embedding [vocab, hidden], head [hidden, vocab]."""

    embedding: Floats
    layers: tuple[Layer, ...]
    head: Linear
    mode: MatmulMode


def weight_files(folder: Path) -> list[Path]:
    """The folder's weight files in name order: the whole one, or the shards of an index.

    An index beside a whole file is what a model was converted from, or a left-over: as with
    transformers, the file counts.
    Raises ModelRefused when there are none or a shard is missing.
    """
    files, index = [folder / _WHOLE], folder / _INDEX
    if not files[0].is_file() and index.is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ModelRefused(f"{index} is not a safetensors index: {error!r}") from None
        files = [folder / Path(name).name for name in sorted(names)]
    missing = [f.name for f in files if not f.is_file()]
    if missing:
        raise ModelRefused(
            f"no {', '.join(missing)} in {folder}: weights are read from {_WHOLE}, or from the "
            f"shards named in {_INDEX}"
        )
    return files


def fingerprint(folder: Path) -> str:
    """sha256, in hex, over the weight files' bytes in name order."""
    digest = hashlib.sha256()
    for file in weight_files(folder):
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def read_tensors(path: Path) -> dict[str, Floats]:
    """The tensors of one file as float32, by name. Raises ModelRefused for a damaged file."""
    data = np.memmap(path, np.uint8, mode="r") if path.stat().st_size >= 8 else np.empty(0, "u1")
    size = int(data[:8].view("<u8")[0]) if data.size else 0
    if not 2 <= size <= min(data.size - 8, _HEADER_LIMIT_BYTES):
        raise ModelRefused(f"{path} is not a safetensors file (is it a Git LFS pointer?)")
    try:
        header = json.loads(data[8 : 8 + size].tobytes())
        header.pop("__metadata__", None)
        return {name: _tensor(name, entry, data[8 + size :]) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelRefused(f"{path} is a damaged safetensors file: {error}") from None


def _tensor(name: str, entry: dict[str, Any], body: npt.NDArray[np.uint8]) -> Floats:
    dtype, shape = entry["dtype"], [int(n) for n in entry["shape"]]
    start, end = (int(n) for n in entry["data_offsets"])
    if dtype not in _BYTES_OF:
        raise ModelRefused(
            f"tensor {name} has type {dtype}; accepted are {', '.join(_BYTES_OF)} "
            "(quantised weights are not supported)"
        )
    wanted = int(np.prod(shape, dtype=np.int64)) * _BYTES_OF[dtype]
    if not 0 <= start <= end <= body.size or end - start != wanted:
        raise ValueError(f"tensor {name} does not fit its byte range")
    raw = np.ascontiguousarray(body[start:end])
    if dtype == "BF16":  # the upper half of a float32
        values = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        values = raw.view("<f4" if dtype == "F32" else "<f2").astype(np.float32)
    return values.reshape(shape)


def read_weights(folder: Path, config: ModelConfig) -> Weights:
    """The weights of a model folder. Raises ModelRefused for files or shapes that do not fit."""
    tensors: dict[str, Floats] = {}
    for file in weight_files(folder):
        tensors.update(read_tensors(file))
    source = _Source(tensors)
    embedding = source.get("model.embed_tokens.weight", config.vocab, config.hidden)
    head = embedding
    if not config.tied_head:
        head = source.get("lm_head.weight", config.vocab, config.hidden)
    last = Linear((head * source.norm("model.norm.weight", config.hidden)).T)
    layers = tuple(_layer(source, config, f"model.layers.{i}.") for i in range(config.layers))
    products = [p for x in layers for p in (x.qkv, x.out, x.gate_up, x.down)] + [last]
    return Weights(embedding, layers, last, choose_mode(products))


def _layer(source: _Source, c: ModelConfig, at: str) -> Layer:
    query_rows, kv_rows = c.heads * c.head_dim, c.kv_heads * c.head_dim

    def projection(name: str, rows: int) -> tuple[Floats, Floats]:
        bias = f"{at}self_attn.{name}_proj.bias"
        return (
            source.get(f"{at}self_attn.{name}_proj.weight", rows, c.hidden),
            source.get(bias, rows) if bias in source.tensors else np.zeros(rows, np.float32),
        )

    scale = np.float32(c.head_dim**-0.5)
    query, query_bias = (_pairs(t * scale, c.head_dim) for t in projection("q", query_rows))
    key, key_bias = (_pairs(t, c.head_dim) for t in projection("k", kv_rows))
    value, value_bias = projection("v", kv_rows)
    before_attention = source.norm(f"{at}input_layernorm.weight", c.hidden)
    before_mlp = source.norm(f"{at}post_attention_layernorm.weight", c.hidden)
    gate = source.get(f"{at}mlp.gate_proj.weight", c.intermediate, c.hidden)
    up = source.get(f"{at}mlp.up_proj.weight", c.intermediate, c.hidden)
    qkv = np.concatenate([query, key, value]) * before_attention
    gate_up = np.concatenate([gate * np.float32(0.5), up]) * before_mlp
    return Layer(
        qkv=Linear(qkv.T),
        qkv_bias=np.concatenate([query_bias, key_bias, value_bias]),
        out=Linear(source.get(f"{at}self_attn.o_proj.weight", c.hidden, query_rows).T),
        gate_up=Linear(gate_up.T),
        down=Linear(source.get(f"{at}mlp.down_proj.weight", c.hidden, c.intermediate).T),
    )


def _pairs(rows: Floats, head_dim: int) -> Floats:
    """Within each head, reorder the leading axis: 0, d/2, 1, d/2 + 1, ..."""
    halves = rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


@dataclass(frozen=True, slots=True)
class _Source:
    """Tensors by name, checked for presence and shape."""

    tensors: Mapping[str, Floats]

    def get(self, name: str, *shape: int) -> Floats:
        found = self.tensors.get(name)
        if found is None:
            raise ModelRefused(f"the weights have no tensor {name}: is the checkpoint complete?")
        if found.shape != shape:
            raise ModelRefused(f"tensor {name} has shape {found.shape}; config.json says {shape}")
        return found

    def norm(self, name: str, size: int) -> Floats:
        """An RMSNorm's weight, times sqrt(size), which the decoder's norm leaves out."""
        return self.get(name, size) * np.float32(size**0.5)
