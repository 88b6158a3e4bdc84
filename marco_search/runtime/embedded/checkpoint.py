"""A Qwen2 checkpoint: its config, and its tensors rearranged once for decoding.

Accepted: Qwen2ForCausalLM with plain rotary embeddings, full attention and unquantised
weights. Everything else is refused with what was found and what is accepted.

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
from marco_search.runtime.embedded.linear import Floats, Linear, MatmulMode, choose_mode

ARCHITECTURE = "Qwen2ForCausalLM"
_INDEX = "model.safetensors.index.json"
_WHOLE = "model.safetensors"
_BYTES_OF = {"F32": 4, "F16": 2, "BF16": 2}
_HEADER_LIMIT_BYTES = 100_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The sizes of a Qwen2 decoder, named as in the Hugging Face config.

    Any of `eos_ids` ends a sequence.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context_tokens: int
    rope_theta: float
    rms_eps: float
    tied_head: bool
    eos_ids: tuple[int, ...]


def read_config(folder: Path) -> ModelConfig:
    """The config of the model in `folder`. Raises ModelRefused (see the module's text)."""
    if not folder.is_dir():
        raise ModelRefused(
            f"{folder} is not a folder: MARCO_MODEL names a Hugging Face model folder"
        )
    raw = read_json(folder / "config.json")
    _check_architecture(folder, raw)

    def count(key: str, default: int | None = None) -> int:
        value = default if raw.get(key) is None else raw[key]
        if not isinstance(value, int) or value < 1:
            raise ModelRefused(f"{folder}/config.json: {key} is {value!r}, not a positive number")
        return value

    heads, hidden = count("num_attention_heads"), count("hidden_size")
    kv_heads = count("num_key_value_heads", heads)
    head_dim = count("head_dim", hidden // heads)
    if heads % kv_heads or head_dim % 2 or head_dim < 2:
        raise ModelRefused(
            f"{folder}: {heads} heads, {kv_heads} key-value heads and head size {head_dim} do not "
            "fit: heads must be a multiple of key-value heads, the head size even"
        )
    return ModelConfig(
        layers=count("num_hidden_layers"),
        hidden=hidden,
        intermediate=count("intermediate_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=count("vocab_size"),
        context_tokens=count("max_position_embeddings", 32768),
        rope_theta=_rope_theta(folder, raw),
        rms_eps=float(raw.get("rms_norm_eps", 1e-6)),
        tied_head=bool(raw.get("tie_word_embeddings", False)),
        eos_ids=_eos_ids(folder, raw),
    )


def read_json(path: Path, *, required: bool = True) -> dict[str, Any]:
    """The JSON object in `path`; {} for a missing file that is not required."""
    if not required and not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelRefused(
            f"no {path.name} in {path.parent}: a Hugging Face model folder has one"
        ) from None
    except (OSError, ValueError) as error:
        raise ModelRefused(f"{path} can't be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelRefused(f"{path} holds no JSON object")
    return value


def _check_architecture(folder: Path, raw: dict[str, Any]) -> None:
    found = raw.get("architectures") or []
    if raw.get("model_type") != "qwen2" or (found and ARCHITECTURE not in found):
        named = ", ".join(map(str, found)) or f"model_type {raw.get('model_type')!r}"
        raise ModelRefused(
            f"{folder} holds {named}; the embedded engine runs {ARCHITECTURE} only: name such a "
            "folder in MARCO_MODEL, or set MARCO_RUNTIME to the URL of an SGLang server"
        )
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method", "some method")
        raise ModelRefused(f"{folder} is quantised ({method}); accepted are F32, F16 and BF16")
    windows = raw.get("layer_types") or []
    if raw.get("use_sliding_window") or any(kind != "full_attention" for kind in windows):
        raise ModelRefused(f"{folder} uses sliding-window attention; accepted is full attention")
    if raw.get("hidden_act", "silu") != "silu":
        raise ModelRefused(f"{folder}: hidden_act is {raw['hidden_act']!r}; accepted is 'silu'")


def _rope_theta(folder: Path, raw: dict[str, Any]) -> float:
    # transformers 5 writes rope_parameters; 4 wrote rope_theta and rope_scaling.
    scaling = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind != "default":
        raise ModelRefused(
            f"{folder}: rope scaling {kind!r} is not supported; accepted is 'default'"
        )
    return float(scaling.get("rope_theta") or raw.get("rope_theta") or 10000.0)


def _eos_ids(folder: Path, raw: dict[str, Any]) -> tuple[int, ...]:
    # generation_config says what ends an answer; a chat model's config.json may say less.
    generation = read_json(folder / "generation_config.json", required=False)
    ids: set[int] = set()
    for value in (generation.get("eos_token_id"), raw.get("eos_token_id")):
        found = value if isinstance(value, list) else [] if value is None else [value]
        if wrong := [token for token in found if type(token) is not int]:
            raise ModelRefused(f"{folder}: eos_token_id has {wrong[0]!r}, not a token id")
        ids.update(found)
    return tuple(sorted(ids))


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
