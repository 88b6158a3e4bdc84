"""A Qwen2 checkpoint's tensors, rearranged once for decoding.

Queries, keys and values are one product, gate and up another. RMSNorm weights and the
attention scale are folded into the product that follows, so a norm is one division. Each
rotary pair (i, i + d/2) is made adjacent: a rotation is then one complex multiplication, and
scores do not change because queries and keys are permuted alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from marco_search.errors import ModelRefused
from marco_search.runtime.embedded.config import ModelConfig
from marco_search.runtime.embedded.linear import Linear, Way, gather, settle
from marco_search.runtime.embedded.safetensors import Floats


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder block."""

    qkv: Linear  # [hidden, (heads + 2 * kv_heads) * head_dim]
    qkv_bias: Floats
    out: Linear  # [heads * head_dim, hidden]
    gate_up: Linear  # [hidden, 2 * intermediate], the gate halved (see decoder)
    down: Linear  # [intermediate, hidden]


@dataclass(frozen=True, slots=True)
class Weights:
    """A whole model. `way` says how many rows its products are computed with."""

    embedding: Floats  # [vocab, hidden]
    layers: tuple[Layer, ...]
    head: Linear  # [hidden, vocab]
    way: Way


def arrange(tensors: Mapping[str, Floats], config: ModelConfig) -> Weights:
    """Build the weights. Raises ModelRefused for a missing tensor or a wrong shape."""
    source = _Source(tensors)
    embedding = source.get("model.embed_tokens.weight", config.vocab, config.hidden)
    head = embedding
    if not config.tied_head:
        head = source.get("lm_head.weight", config.vocab, config.hidden)
    head = head * _norm(source, "model.norm.weight", config.hidden)
    layers = tuple(_layer(source, config, i) for i in range(config.layers))
    last = Linear(head.T)
    products = [p for x in layers for p in (x.qkv, x.out, x.gate_up, x.down)]
    gather([*products, last])
    return Weights(embedding, layers, last, settle([*products, last]))


def _layer(source: _Source, config: ModelConfig, index: int) -> Layer:
    c, at = config, f"model.layers.{index}."
    query_rows, kv_rows = c.heads * c.head_dim, c.kv_heads * c.head_dim

    def projection(name: str, rows: int) -> tuple[Floats, Floats]:
        weight = source.get(f"{at}self_attn.{name}_proj.weight", rows, c.hidden)
        return weight, source.get_or_zeros(f"{at}self_attn.{name}_proj.bias", rows)

    scale = np.float32(c.head_dim**-0.5)
    query, query_bias = (_pairs(t * scale, c.head_dim) for t in projection("q", query_rows))
    key, key_bias = (_pairs(t, c.head_dim) for t in projection("k", kv_rows))
    value, value_bias = projection("v", kv_rows)
    before_attention = _norm(source, f"{at}input_layernorm.weight", c.hidden)
    before_mlp = _norm(source, f"{at}post_attention_layernorm.weight", c.hidden)
    gate = source.get(f"{at}mlp.gate_proj.weight", c.intermediate, c.hidden)
    up = source.get(f"{at}mlp.up_proj.weight", c.intermediate, c.hidden)
    out = source.get(f"{at}self_attn.o_proj.weight", c.hidden, query_rows)
    down = source.get(f"{at}mlp.down_proj.weight", c.hidden, c.intermediate)
    qkv = np.concatenate([query, key, value]) * before_attention
    gate_up = np.concatenate([gate * np.float32(0.5), up]) * before_mlp
    return Layer(
        qkv=Linear(qkv.T),
        qkv_bias=np.concatenate([query_bias, key_bias, value_bias]),
        out=Linear(out.T),
        gate_up=Linear(gate_up.T),
        down=Linear(down.T),
    )


def _norm(source: _Source, name: str, size: int) -> Floats:
    """An RMSNorm's weight, times sqrt(size), which the decoder's norm leaves out."""
    return source.get(name, size) * np.float32(size**0.5)


def _pairs(rows: Floats, head_dim: int) -> Floats:
    """Within each head, reorder the leading axis: 0, d/2, 1, d/2 + 1, ..."""
    shape = rows.shape
    halves = rows.reshape(-1, 2, head_dim // 2, *shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(shape)


class _Source:
    """Tensors by name, checked for presence and shape."""

    def __init__(self, tensors: Mapping[str, Floats]) -> None:
        self._tensors = tensors

    def get(self, name: str, *shape: int) -> Floats:
        found = self._tensors.get(name)
        if found is None:
            raise ModelRefused(f"the weights have no tensor {name}: is the checkpoint complete?")
        if found.shape != shape:
            raise ModelRefused(f"tensor {name} has shape {found.shape}; config.json says {shape}")
        return found

    def get_or_zeros(self, name: str, size: int) -> Floats:
        return self.get(name, size) if name in self._tensors else np.zeros(size, np.float32)
