"""Reads a model folder's config.json and refuses what the decoder would compute wrongly.

Accepted: Qwen2ForCausalLM with plain rotary embeddings, full attention and unquantised
weights. Everything else is refused with what was found and what is accepted.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marco_search.errors import ModelRefused

ARCHITECTURE = "Qwen2ForCausalLM"


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
