"""A decoder's config, and its tensors rearranged once for decoding.

Accepted: Llama, Qwen2 and Qwen3 with full attention; one `Architecture` says what each has.
Everything else is refused with what was found and what is accepted.

Queries, keys and values become one product, gate and up another. RMSNorm weights and the
attention scale are folded into the product that follows, so a norm is one division. Each
rotary pair (i, i + d/2) is made adjacent: a rotation is then one complex multiplication, and
scores do not change because queries and keys are permuted alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from marco_search.errors import ModelRefused
from marco_search.runtime.embedded.files import ModelFiles
from marco_search.runtime.embedded.linear import Floats, Linear, MatmulMode, Team, choose_mode

_LARGEST = 2**24
"""What any size in a config may be: tables are made of some before the weights are looked at."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """What tells the supported decoders apart.

    name: its class in config.json; head_norms: an RMSNorm of every query's and key's head before
    the rotation. Biases of queries, keys and values are those that the weights have.
    """

    name: str
    head_norms: bool = False


ARCHITECTURES = {
    "llama": Architecture("LlamaForCausalLM"),
    "qwen2": Architecture("Qwen2ForCausalLM"),
    "qwen3": Architecture("Qwen3ForCausalLM", head_norms=True),
}
"""By model_type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The sizes of a decoder, named as in the Hugging Face config.

    rope_speeds [head_dim / 2]: radians a token of every rotary pair. Any of `eos_ids` ends a
    sequence.
    """

    architecture: Architecture
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context_tokens: int
    rope_speeds: tuple[float, ...]
    rms_eps: float
    tied_head: bool
    eos_ids: tuple[int, ...]


def read_config(files: ModelFiles) -> ModelConfig:
    """The config of a model. Raises ModelRefused (see the module's text)."""
    raw, path = files.config, files.path
    architecture = _architecture(files)

    def count(key: str, default: int | None = None) -> int:
        value = default if raw.get(key) is None else raw[key]
        if not isinstance(value, int) or not 1 <= value <= _LARGEST:
            what = f"{repr(value)[:80]}, not a number from 1 to {_LARGEST:,}"
            raise ModelRefused(f"{path}: config.json: {key} is {what}")
        return value

    heads, hidden = count("num_attention_heads"), count("hidden_size")
    kv_heads = count("num_key_value_heads", heads)
    head_dim = count("head_dim", hidden // heads)
    if heads % kv_heads or head_dim % 2 or head_dim < 2:
        raise ModelRefused(
            f"{path}: {heads} heads, {kv_heads} key-value heads and head size {head_dim} do not "
            "fit: heads must be a multiple of key-value heads, the head size even"
        )
    return ModelConfig(
        architecture=architecture,
        layers=count("num_hidden_layers"),
        hidden=hidden,
        intermediate=count("intermediate_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=count("vocab_size"),
        context_tokens=count("max_position_embeddings", 32768),
        rope_speeds=_rope_speeds(files, head_dim),
        rms_eps=float(raw.get("rms_norm_eps", 1e-6)),
        tied_head=bool(raw.get("tie_word_embeddings", False)),
        eos_ids=_eos_ids(files),
    )


def _architecture(files: ModelFiles) -> Architecture:
    """The description of the model. Raises ModelRefused naming what is not supported in it."""
    raw, path = files.config, files.path
    found = raw.get("architectures") or []
    known = ARCHITECTURES.get(str(raw.get("model_type")))
    experts = raw.get("num_experts") or raw.get("num_local_experts")
    if known is None or (found and known.name not in found):
        named = ", ".join(map(str, found)) or f"model_type {raw.get('model_type')!r}"
        accepted = ", ".join(a.name for a in ARCHITECTURES.values())
        raise ModelRefused(
            f"{path} holds {named}{' (a mixture of experts)' if experts else ''}; the embedded "
            f"engine runs {accepted}: name such a model in MARCO_MODEL, or set MARCO_RUNTIME to "
            "the URL of a server"
        )
    method = (raw.get("quantization_config") or {}).get("quant_method", "some method")
    windows = any(kind != "full_attention" for kind in raw.get("layer_types") or [])
    unsupported = (
        (experts, "is a mixture of experts; accepted are dense models"),
        (
            raw.get("quantization_config"),
            f"is quantised ({method}); accepted are F32, F16 and BF16, and GGUF files",
        ),
        (
            raw.get("use_sliding_window") or windows,
            "uses sliding-window attention; accepted is full attention",
        ),
        (
            raw.get("attention_bias") or raw.get("mlp_bias"),
            "has attention_bias or mlp_bias: accepted are biases of queries, keys and values only",
        ),
        (
            raw.get("hidden_act", "silu") != "silu",
            f"has hidden_act {raw.get('hidden_act')!r}; accepted is 'silu'",
        ),
    )
    for is_so, what in unsupported:
        if is_so:
            raise ModelRefused(f"{path} {what}")
    return known


def _rope_speeds(files: ModelFiles, head_dim: int) -> tuple[float, ...]:
    # transformers 5 writes rope_parameters; 4 wrote rope_theta and rope_scaling.
    raw = files.config
    scaling = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if scaling.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1)) != 1:
        raise ModelRefused(f"{files.path}: partial rotary embeddings are not supported")
    theta = float(scaling.get("rope_theta") or raw.get("rope_theta") or 10000.0)
    speeds = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    try:
        if kind == "llama3":
            speeds = _llama3_speeds(speeds, scaling)
        elif kind == "factors":  # of a GGUF file: what "llama3" comes to, worked out
            speeds = speeds / np.array(scaling["factors"], np.float64)
        elif kind != "default":
            raise ModelRefused(
                f"{files.path}: rope scaling {kind!r} is not supported; accepted are 'default' "
                "and 'llama3'"
            )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelRefused(
            f"{files.path}: rope scaling {kind!r} is not usable: {error!r}"
        ) from None
    return tuple(speeds.tolist())


def _llama3_speeds(speeds: Any, scaling: Mapping[str, Any]) -> Any:
    """Llama 3.1's: slow rotations slower by `factor`, those between mixed.

    Slow: fewer than low_freq_factor turns in the original context; fast: more than
    high_freq_factor. As transformers' `_compute_llama3_parameters`.
    """
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    turns = scaling["original_max_position_embeddings"] * speeds / (2 * np.pi)
    fast = np.clip((turns - low) / (high - low), 0, 1)
    return fast * speeds + (1 - fast) * speeds / float(scaling["factor"])


def _eos_ids(files: ModelFiles) -> tuple[int, ...]:
    # generation_config says what ends an answer; a chat model's config.json may say less.
    ids: set[int] = set()
    for value in (files.generation.get("eos_token_id"), files.config.get("eos_token_id")):
        found = value if isinstance(value, list) else [] if value is None else [value]
        if wrong := [token for token in found if type(token) is not int]:
            raise ModelRefused(f"{files.path}: eos_token_id has {wrong[0]!r}, not a token id")
        ids.update(found)
    return tuple(sorted(ids))


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder block; shapes are [inputs, outputs].

    qkv [hidden, (heads + 2 * kv_heads) * head_dim] with its bias, out [heads * head_dim, hidden],
    gate_up [hidden, 2 * intermediate] with the gate halved (see the decoder), down
    [intermediate, hidden]; head_norms [heads + kv_heads, head_dim]: what every query's and
    key's head is multiplied with when it is normalised, None: it is not.
    """

    qkv: Linear
    qkv_bias: Floats | None
    out: Linear
    gate_up: Linear
    down: Linear
    head_norms: Floats | None


@dataclass(frozen=True, slots=True)
class Weights:
    """A whole model: embedding [vocab, hidden], head [hidden, vocab].

    `team` are the threads for what is large.
    """

    embedding: Floats
    layers: tuple[Layer, ...]
    head: Linear
    mode: MatmulMode
    team: Team


def read_weights(files: ModelFiles, config: ModelConfig, team: Team) -> Weights:
    """The weights of a model. Raises ModelRefused for files or shapes that do not fit."""
    source = _Source(files.tensors())
    embedding = source.get("model.embed_tokens.weight", config.vocab, config.hidden)
    head = embedding
    if not config.tied_head:
        head = source.get("lm_head.weight", config.vocab, config.hidden)
    last = Linear((head * source.norm("model.norm.weight", config.hidden)).T)
    layers = tuple(_layer(source, config, f"model.layers.{i}.") for i in range(config.layers))
    source.require_all_read()
    products = [p for x in layers for p in (x.qkv, x.out, x.gate_up, x.down)] + [last]
    return Weights(embedding, layers, last, *choose_mode(products, team))


def _layer(source: _Source, c: ModelConfig, at: str) -> Layer:
    query_rows, kv_rows = c.heads * c.head_dim, c.kv_heads * c.head_dim

    def fused(kind: str, *more: int) -> Floats:
        """Queries, keys and values in one: their weights, or their biases."""

        def of(name: str, rows: int) -> Floats:
            return source.get(f"{at}self_attn.{name}_proj.{kind}", rows, *more)

        query, key = of("q", query_rows) * scale, of("k", kv_rows)
        pairs = (_pairs(query, c.head_dim), _pairs(key, c.head_dim))
        return np.concatenate([*pairs, of("v", kv_rows)])

    scale, norms = np.float32(c.head_dim**-0.5), None
    if c.architecture.head_norms:
        # A norm takes a scale back: it goes into the norm's own weight.
        norms = _head_norms(source, c, at, scale)
        scale = np.float32(1)
    before_attention = source.norm(f"{at}input_layernorm.weight", c.hidden)
    before_mlp = source.norm(f"{at}post_attention_layernorm.weight", c.hidden)
    gate = source.get(f"{at}mlp.gate_proj.weight", c.intermediate, c.hidden)
    up = source.get(f"{at}mlp.up_proj.weight", c.intermediate, c.hidden)
    gate_up = np.concatenate([gate * np.float32(0.5), up]) * before_mlp
    has_bias = f"{at}self_attn.q_proj.bias" in source.tensors
    return Layer(
        qkv=Linear((fused("weight", c.hidden) * before_attention).T),
        qkv_bias=fused("bias") if has_bias else None,
        out=Linear(source.get(f"{at}self_attn.o_proj.weight", c.hidden, query_rows).T),
        gate_up=Linear(gate_up.T),
        down=Linear(source.get(f"{at}mlp.down_proj.weight", c.hidden, c.intermediate).T),
        head_norms=norms,
    )


def _head_norms(source: _Source, c: ModelConfig, at: str, scale: np.float32) -> Floats:
    query = source.norm(f"{at}self_attn.q_norm.weight", c.head_dim) * scale
    key = source.norm(f"{at}self_attn.k_norm.weight", c.head_dim)
    rows = [query] * c.heads + [key] * c.kv_heads
    return _pairs(np.concatenate(rows), c.head_dim).reshape(-1, c.head_dim)


def _pairs(rows: Floats, head_dim: int) -> Floats:
    """Within each head, reorder the leading axis: 0, d/2, 1, d/2 + 1, ..."""
    halves = rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


@dataclass(frozen=True, slots=True)
class _Source:
    """Tensors by name, checked for presence and shape."""

    tensors: Mapping[str, Floats]
    read: set[str] = field(default_factory=set)

    def require_all_read(self) -> None:
        """Raises ModelRefused for a weight that the model has and the decoder would leave out."""
        for name in sorted(self.tensors.keys() - self.read - {"lm_head.weight"}):
            if name.startswith(("model.", "lm_head.")) and name.endswith((".weight", ".bias")):
                raise ModelRefused(
                    f"the weights have a tensor {name}, which no model of this config.json has"
                )

    def get(self, name: str, *shape: int) -> Floats:
        self.read.add(name)
        found = self.tensors.get(name)
        if found is None:
            raise ModelRefused(f"the weights have no tensor {name}: is the checkpoint complete?")
        if found.shape != shape:
            raise ModelRefused(f"tensor {name} has shape {found.shape}; config.json says {shape}")
        return found

    def norm(self, name: str, size: int) -> Floats:
        """An RMSNorm's weight, times sqrt(size), which the decoder's norm leaves out."""
        return self.get(name, size) * np.float32(size**0.5)
